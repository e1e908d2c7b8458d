"""What to pivot to: a backing file name as a header has it, and the options of the node that it means."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from chainlift.chain.names import parse_name
from chainlift.chain.opening import probe_format

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chainlift.chain.names import Reference

#: Drivers that open what lies in a file or on a device.
PROTOCOLS: Final = ("file", "host_device")


@dataclass(frozen=True)
class Target:
    """A backing file for the active layer: the text that makes it durable, and the node that QEMU opens."""

    #: What ``change-backing-file`` writes into the active layer's header.
    pointer: str
    #: Options of ``blockdev-add``, without ``node-name``; children that are not named are opened as the headers say.
    options: Mapping[str, Any]
    #: The layers under it, top first, each with options of its own: for adding them one by one.
    below: tuple[Mapping[str, Any], ...] = ()


def node_options(options: Mapping[str, Any], name: str, *, direct: bool, no_flush: bool) -> dict[str, Any]:
    """Return the options of ``blockdev-add`` for a node of this name, with this cache mode in all of it.

    :param options: nested, as ``blockdev-add`` takes them; without a name.
    :param name: of the uppermost node.
    :param direct: past the page cache.
    :param no_flush: as QEMU's ``no-flush``.
    """
    return {**_with_cache(options, {"direct": direct, "no-flush": no_flush}), "node-name": name}


def pointed_file(image: Path, pointer: str | None) -> Path | None:
    """Return the file that a backing file name leads to: of an index, its descriptor."""
    if pointer is None:
        return None
    if not pointer.startswith("json:"):
        return image.parent / pointer.removeprefix("file:")
    options: Any = unflatten(json.loads(pointer[5:]))
    while isinstance(options, dict) and "filename" not in options:
        options = options.get("file")
    return image.parent / options["filename"] if isinstance(options, dict) else None


def backing_target(image: Path, pointer: str, pointer_format: str | None) -> Target:
    """Return what a backing file name means for QEMU, as the options of a node (``bdrv_open_backing_file()``).

    :param image: the image whose header has the name, or will have it; a relative name is relative to its directory.
    :param pointer: a path, ``file:`` and a path, or ``json:{...}``.
    :param pointer_format: as the header names it, None where it does not: then it is found by looking.
    :raise PolicyError: if the name leads to anything but local files.
    :raise ImageError: if it is no name, or the file cannot be looked at.
    """
    return Target(pointer, open_options(parse_name(pointer, named_in=str(image), file_format=pointer_format)))


def open_options(reference: Reference) -> dict[str, Any]:
    """Return the options of ``blockdev-add`` that open a reference, read-only; what is not said follows its headers.

    Of a layer only the node itself is said to be read-only: its file inherits that, and QEMU can then reopen both for
    writing, as ``block-commit`` and ``change-backing-file`` do. Of an index every node is.
    """
    if reference.is_descriptor:
        file = {"driver": "file", "read-only": True, "filename": reference.path}
        return {"driver": "qcow2", "read-only": True, "file": {"driver": "vmdk", "read-only": True, "file": file}}
    options: dict[str, Any] = {
        "driver": layer_format(reference),
        "read-only": True,
        "file": {"driver": protocol(reference.path), "filename": reference.path},
    }
    if reference.data_file is not None:
        path = reference.data_file.path
        options["data-file"] = {"driver": protocol(path), "filename": path}
    if not reference.follows_header:
        options["backing"] = None if reference.backing is None else open_options(reference.backing)
    return options


def layer_format(reference: Reference) -> str:
    """Return the driver of a layer, by a look into the file where nobody said it.

    :raise OSError: if it cannot be read.
    """
    if reference.format is not None:
        return "raw" if reference.format in PROTOCOLS else reference.format
    with Path(reference.path).open("rb") as file:
        return probe_format(file.read(4096))


def protocol(path: str) -> str:
    """Return the driver that opens a file by its path as QEMU would by itself."""
    with suppress(OSError):  # opening it will say what is wrong with the name
        return "host_device" if Path(path).is_block_device() else "file"
    return "file"


def _with_cache(options: Mapping[str, Any], cache: Mapping[str, bool]) -> dict[str, Any]:
    """Every node that is named here inherits nothing from a parent that is named too: tell each."""
    inner = {key: _with_cache(value, cache) if isinstance(value, dict) else value for key, value in options.items()}
    return {**inner, "cache": dict(cache)} if "driver" in options else inner


def unflatten(options: Mapping[str, Any]) -> dict[str, Any]:
    """Turn ``{"file.driver": "vmdk"}`` into ``{"file": {"driver": "vmdk"}}``; ``json:`` names may have either."""
    nested: dict[str, Any] = {}
    for key, value in options.items():
        place = nested
        *parents, last = key.split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = unflatten(value) if isinstance(value, dict) else value
    return nested
