"""What to pivot to: a backing file name as a header has it, and the options of the node that it means."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chainlift.chain.names import parse_name
from chainlift.chain.opening import probe_format
from chainlift.errors import ImageError
from chainlift.qcow2.file import ImageFile

if TYPE_CHECKING:
    from collections.abc import Mapping


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
    """Return the options of ``blockdev-add`` for a node of this name, with this cache mode in all of it."""
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
    reference = parse_name(pointer, named_in=str(image), file_format=pointer_format)
    if pointer.startswith("json:"):
        # As it was given: what it overrides stays overridden.
        options = unflatten(json.loads(pointer[5:]))
        if isinstance(options.get("filename"), str):
            options = {"file": options}
        if pointer_format is not None:
            options["driver"] = pointer_format
        return Target(pointer, _read_only(_complete(options)))
    file = {"driver": _file_driver(reference.path), "filename": reference.path}
    return Target(pointer, _read_only({"driver": _format(reference.format, reference.path), "file": file}))


def require_persistent(image: Path, target: Target) -> None:
    """Refuse a target that a running QEMU cannot name in the image's header.

    :raise ImageError: if its format is not qcow2: ``change-backing-file`` always writes the overlay's own format down
        as the backing file's (blockdev.c, ``qmp_change_backing_file``), and a raw file would be read as qcow2 from then
        on.
    """
    if target.options.get("driver") != "qcow2":
        raise ImageError(
            f"the backing file to switch to is {target.options.get('driver')}",
            path=image,
            hint="a running QEMU can only be switched to qcow2; do it with the image at rest",
        )


def _complete(options: Mapping[str, Any]) -> dict[str, Any]:
    """Name every driver that a ``json:`` name leaves for QEMU to find: ``blockdev-add`` finds none."""
    found: dict[str, Any] = {
        key: _complete(value) if isinstance(value, dict) else value for key, value in options.items()
    }
    if isinstance(found.get("filename"), str):
        found.setdefault("driver", _file_driver(found["filename"]))
    elif isinstance(found.get("file"), dict):
        found["driver"] = _format(found.get("driver"), found["file"].get("filename"))
    return found


def _file_driver(path: str) -> str:
    return "host_device" if Path(path).is_block_device() else "file"


def _format(said: str | None, path: str | None) -> str:
    if said in ("file", "host_device"):  # a backing format that means what lies in the file
        return "raw"
    if said is not None or path is None:
        return said or "raw"
    file = ImageFile(path)
    try:
        return probe_format(file.pread(0, 4096))
    finally:
        file.close()


def _read_only(options: Mapping[str, Any]) -> dict[str, Any]:
    inner = {key: _read_only(value) if isinstance(value, dict) else value for key, value in options.items()}
    return {**inner, "read-only": True} if "driver" in options else inner


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
