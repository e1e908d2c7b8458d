"""The active layers below some directories: what a program lifts that lifts all disks there are."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.errors import ImageError
from chainlift.lift.forest.scan import scan
from chainlift.lift.record.manifest import SUFFIX, read_manifest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from chainlift.lift.forest.scan import Forest, Node


def active_layers(directories: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Find the qcow2 images below some directories on which no image there stands: the disks' active layers.

    >>> [path.name for path in active_layers(["."])]
    ['disk.qcow2']

    Nothing is changed, and no QEMU is needed. Files of lifts are left out, and so are layers that a lift stands for. An
    image that something outside the directories stands on cannot be told: name all directories in which images are.

    :param directories: where to look, one or several, and below; symbolic links to directories are not followed.
    :return: their paths, absolute, in the order of their names. Whether one can be lifted is not looked at.
    :raise ImageError: if one of the directories is none. What cannot be read in one is left out.
    """
    return sorted(Path(node.path) for node in active_nodes(scan(directories)) if not node.is_outside)


def active_nodes(forest: Forest) -> list[Node]:
    """Return the qcow2 images of a forest on which none of its images stands, those of lifts left out."""
    replaced = {path for node in forest.nodes.values() if node.lift == "squash" for path in _layers_of(node)}
    return [
        node
        for node in forest.nodes.values()
        if node.format == "qcow2"
        and node.lift is None
        and not forest.above.get(node.identity)
        and os.path.realpath(node.path) not in replaced
    ]


def _layers_of(squash: Node) -> list[str]:
    """Return the layers that a squash was made of, as its record says: they are the way back."""
    with suppress(ImageError):
        manifest = read_manifest(Path(squash.path).with_suffix(SUFFIX))
        return [os.path.realpath(layer.identity.path) for layer in manifest.layers]
    return []
