"""Building a squash: the layers between an image and one below it, as one ordinary qcow2 layer."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from chainlift.chain.names import format_reference, plain_name
from chainlift.errors import ImageError
from chainlift.lift.build.merge import LayersBelow, Merger
from chainlift.lift.build.rewrite import rewrite
from chainlift.lift.record.manifest import Pointer
from chainlift.lift.record.pointer import MAX_BACKING_NAME
from chainlift.qcow2.writer import ImageWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chainlift.chain import Chain
    from chainlift.chain.digest import TablesDigest
    from chainlift.lift.build.copying import Copied
    from chainlift.lift.build.files import ClusterFiles
    from chainlift.lift.build.workspace import Workspace


@dataclass(frozen=True)
class BuiltSquash:
    """A squash that lies in the workspace under its final name; nothing uses it yet."""

    name: str
    #: Name by which the image has it as its backing file.
    backing_name: str
    cluster_size: int
    copied: Copied
    visible_clusters: list[int]


def find_onto(chain: Chain, onto: str | os.PathLike[str] | None) -> int:
    """Return which layer of a chain a squash is to stand on.

    :param onto: its path, or None for the base.
    :raise ImageError: if it is no layer of the chain, or there is nothing above it to squash.
    """
    if onto is None:
        number = len(chain.layers) - 1
    else:
        wanted = os.path.realpath(onto)
        found = [n for n, layer in enumerate(chain.layers) if os.path.realpath(layer.path) == wanted]
        if not found:
            raise ImageError("is no layer of the chain", path=onto, hint="name a file that stands below the image")
        number = found[0]
    if number == 0:
        raise ImageError(
            "is what the image already stands on: there is nothing between them", path=chain.layers[0].path
        )
    return number


def squash_cluster_size(chain: Chain) -> int:
    """Return the cluster size of a squash, in bytes: that of the top layer, 4 KiB at least."""
    size = chain.layers[0].cluster_size
    assert size is not None
    return max(size, 4096)


def layers_below(chain: Chain, onto: int) -> LayersBelow:
    """Return what a squash leaves where it is."""
    return LayersBelow(onto, min(layer.virtual_size for layer in chain.layers[:onto]))


def build_squash(
    chain: Chain,
    sources: ClusterFiles,
    descriptors: dict[str, int],
    workspace: Workspace,
    onto: int,
    *,
    absolute_names: bool = False,
    digests: Sequence[TablesDigest] | None = None,
    rate_bytes_per_s: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> BuiltSquash:
    """Write the layers above ``onto`` as one.

    :param chain: everything under the image that is lifted.
    :param descriptors: an open file descriptor for each file of the sources, by its path.
    :param onto: index of the layer that stays, and is the new one's backing file.
    :param absolute_names: of the new layer and in it; else they are relative where all may be moved together.
    :param digests: one for each layer, to take in what its tables say.
    """
    # A name that no header can hold is found before gigabytes are copied.
    backing = _backing_of(chain, onto, workspace, absolute_names=absolute_names)
    name = workspace.claim("squash") + ".qcow2"
    with (
        workspace.new_path(name) as path,
        ImageWriter(
            path,
            virtual_size=chain.virtual_size,
            cluster_size=squash_cluster_size(chain),
            backing_file=backing.name,
            backing_format=backing.format,
            mode=0o600,
        ) as writer,
    ):
        merger = Merger(chain, sources, writer.cluster_size, below=layers_below(chain, onto), digests=digests)
        done = rewrite(
            merger,
            sources,
            descriptors,
            writer,
            virtual_size=chain.virtual_size,
            rate_bytes_per_s=rate_bytes_per_s,
            progress=progress,
        )
        writer.finish(sync=True)
    return BuiltSquash(
        name=name,
        backing_name=str(workspace.path / name) if absolute_names else plain_name(f"{workspace.path.name}/{name}"),
        cluster_size=writer.cluster_size,
        copied=done.copied,
        visible_clusters=done.visible_clusters,
    )


def _backing_of(chain: Chain, onto: int, workspace: Workspace, *, absolute_names: bool) -> Pointer:
    """Return how the new layer names the one it stands on."""
    layer = chain.layers[onto]
    file_format = "raw" if layer.image is None else "qcow2"
    # As it was opened, overridden options included: QEMU must read through the squash what it read without.
    reference = replace(layer.reference, path=os.path.abspath(layer.path), format=file_format)  # noqa: PTH100
    name = format_reference(reference)
    parent = f"{workspace.path.parent}/"
    if not absolute_names and not name.startswith("json:") and name.startswith(parent):
        name = f"../{name.removeprefix(parent)}"
    if len(os.fsencode(name)) > MAX_BACKING_NAME:
        raise ImageError(
            f"its name in a header would have more than {MAX_BACKING_NAME} bytes",
            path=layer.path,
            hint="squash onto another layer with --onto",
        )
    return Pointer(name=name, format=file_format)
