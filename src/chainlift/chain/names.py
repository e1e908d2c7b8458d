"""Backing file names as QEMU understands them: plain, ``file:`` and ``json:`` that describes local files.

See ``bdrv_get_full_backing_filename()`` and ``parse_json_protocol()`` in QEMU's block.c. A plain relative name is
relative to the directory of the name by which the overlay was opened (a symbolic link's own directory); ``file:`` and
``json:`` names are relative to the working directory.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Any

from chainlift.errors import ImageError, InputError, PolicyError

#: Drivers of QEMU that are the format of a layer.
FORMATS = ("qcow2", "raw")
_FILE_DRIVERS = ("file", "host_device")
#: Options of a node that do not change what is read through it.
_HARMLESS = frozenset({
    "node-name", "read-only", "auto-read-only", "force-share", "cache", "discard", "detect-zeroes", "locking", "aio",
    "aio-max-batch", "drop-cache", "x-check-cache-dropped", "lazy-refcounts", "pass-discard-request",
    "pass-discard-snapshot", "pass-discard-other", "discard-no-unref", "overlap-check", "cache-size", "l2-cache-size",
    "l2-cache-entry-size", "refcount-cache-size", "cache-clean-interval",
})  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """A local file and how it is to be opened."""

    path: str
    #: The driver that was asked for; None where nothing was said and QEMU would look at the content.
    format: str | None = None
    #: Whether the backing file is the one that the image's header names; otherwise it is :attr:`backing`.
    follows_header: bool = True
    backing: Reference | None = None
    data_file: Reference | None = None
    #: Whether the file is a VMDK descriptor whose extents hold the image, as under an index.
    is_descriptor: bool = False


def parse_name(name: str, *, named_in: str | None = None, file_format: str | None = None) -> Reference:
    """Understand a file name.

    :param name: as it stands in a header; of one that was given by a person see :func:`parse_argument`.
    :param named_in: the image whose header has it, as it was opened; None: it is relative to the working directory.
    :param file_format: the format that was said beside the name; it wins over a driver inside ``json:``.
    :raise PolicyError: if it names anything but local files.
    :raise ImageError: if it is no name at all.
    """
    if "\0" in name:
        raise ImageError("names a file with a NUL in its name", path=named_in)
    if name.startswith("json:"):
        try:
            return _node(_parse_json(name, named_in), named_in, file_format)
        except RecursionError as error:
            raise ImageError("has a json: name that is nested too deeply", path=named_in) from error
    protocol, separator, rest = name.partition(":")
    if separator and "/" not in protocol:
        if protocol not in _FILE_DRIVERS:
            raise PolicyError(f"names {name!r}: the protocol {protocol!r} is no local file", path=named_in)
        return _plain(rest, None, file_format)
    return _plain(name, named_in, file_format)


def parse_argument(name: str, *, file_format: str | None = None) -> Reference:
    """Understand the name that a person gave on a command line, who means a file where there is one of that name.

    So ``a:b.qcow2`` is a file if it is there, whatever QEMU would take it for; it gets a name that QEMU takes for a
    file, too. A name that no file has is understood as one in a header is.

    :param file_format: the format that was said beside the name.
    :raise PolicyError: if it names anything but local files.
    :raise ImageError: if it is no name at all.
    """
    if ":" in name.split("/", maxsplit=1)[0] and os.path.lexists(name):
        return Reference(f"./{name}", file_format)
    return parse_name(name, file_format=file_format)


def plain_name(path: str) -> str:
    """Return a path so that QEMU takes it for one: a colon in its first part would make it a protocol."""
    return f"./{path}" if ":" in path.split("/", maxsplit=1)[0] or path.startswith("-") else path


def format_reference(reference: Reference) -> str:
    """Write a reference as a name that QEMU, and :func:`parse_name`, understand again.

    A plain name says a path and nothing else: it is written where the reference overrides nothing that the image's
    header says, relative where the path is, and the format is then said beside it. All else takes a ``json:`` name,
    which has absolute paths. It may be longer than the 1,023 bytes that a header has room for.

    :raise InputError: if a path in a ``json:`` name is no UTF-8: QEMU's JSON has no other text.
    """
    overrides = not reference.follows_header or reference.data_file is not None or reference.is_descriptor
    if _is_raw(reference) or not overrides:
        return plain_name(reference.path)
    import json  # most names are none

    return "json:" + json.dumps(_describe(reference), separators=(",", ":"), ensure_ascii=False)


def _describe(reference: Reference) -> dict[str, Any]:
    """Return the options of a node; a driver that nobody said is left for QEMU to find, as it would have been."""
    options: dict[str, Any] = {}
    if _is_raw(reference):
        return {"driver": "raw", "file": _describe_file(reference)}
    if reference.format is not None:
        options["driver"] = reference.format
    if reference.is_descriptor:
        # As chainlift.lift.record.pointer.backing_name(): no node that could be written through.
        inner = {"driver": "file", "read-only": True, "filename": _absolute(reference.path)}
        options |= {"read-only": True, "file": {"driver": "vmdk", "read-only": True, "file": inner}}
    else:
        options["file"] = _describe_file(reference)
    if reference.data_file is not None:
        options["data-file"] = _describe_file(reference.data_file)
    if not reference.follows_header:
        options["backing"] = None if reference.backing is None else _describe(reference.backing)
    return options


def _is_raw(reference: Reference) -> bool:
    """Whether there is no header that could say, or be overridden in, anything."""
    return reference.format is not None and reference.format in ("raw", *_FILE_DRIVERS)


def _describe_file(reference: Reference) -> dict[str, Any]:
    path = _absolute(reference.path)
    try:
        is_device = stat.S_ISBLK(os.stat(path).st_mode)  # noqa: PTH116 - names may hold any byte
    except OSError:
        is_device = False
    return {"driver": "host_device" if is_device else "file", "filename": path}


def _absolute(path: str) -> str:
    """Return an absolute path; ``..`` stays, as what it leads to depends on symbolic links before it."""
    path = os.path.join(os.getcwd(), path.removeprefix("./"))  # noqa: PTH109, PTH118 - names may hold any byte
    try:
        path.encode()
    except UnicodeEncodeError as error:
        what = "has a name that is no UTF-8, which a json: name cannot carry"
        raise InputError(what, path=path, hint="rename it, or what it lies in") from error
    return path


def _plain(name: str, named_in: str | None, file_format: str | None) -> Reference:
    """Understand a name that is a path, relative to the image that names it."""
    if not name:
        raise ImageError("names a file without a name", path=named_in)
    directory = os.path.dirname(named_in) if named_in else ""  # noqa: PTH120 - textually, as QEMU does
    if not directory or name.startswith("/"):
        return Reference(name, file_format)
    return Reference(f"{directory.rstrip('/')}/{name}", file_format)


def _parse_json(name: str, named_in: str | None) -> dict[str, Any]:
    import json  # most names are none

    try:
        # surrogateescape: a name may have bytes that are no UTF-8, and JSON strings keep them.
        options = json.loads(name.removeprefix("json:"))
    except (ValueError, RecursionError) as error:
        raise ImageError(f"has a json: name that is no JSON: {error}", path=named_in) from error
    if not isinstance(options, dict):
        raise ImageError("has a json: name that is no JSON object", path=named_in)
    return _nest(options, named_in)


def _nest(options: dict[str, Any], named_in: str | None) -> dict[str, Any]:
    """Turn ``{"file.filename": x}`` into ``{"file": {"filename": x}}``, all the way down."""
    nested: dict[str, Any] = {}
    for key, value in options.items():
        *parents, last = key.split(".")
        place = nested
        for parent in parents:
            child = place.setdefault(parent, {})
            if not isinstance(child, dict):
                raise ImageError(f"has a json: name that says {parent!r} twice", path=named_in)
            place = child
        content = _nest(value, named_in) if isinstance(value, dict) else value
        if isinstance(content, dict) and isinstance(place.get(last), dict):
            place[last].update(content)
        elif last in place:
            raise ImageError(f"has a json: name that says {last!r} twice", path=named_in)
        else:
            place[last] = content
    return nested


def _node(options: dict[str, Any], named_in: str | None, file_format: str | None) -> Reference:
    """Understand the description of a node with a format, or of a file without one."""
    driver = options.get("driver")
    if driver in _FILE_DRIVERS or (driver is None and "filename" in options):
        _check_options(options, {"driver", "filename"}, named_in)
        reference = _filename(options, named_in)
        return Reference(reference, file_format or ("raw" if driver else None))
    if driver is not None and driver not in FORMATS:
        raise PolicyError(f"has a json: name with the driver {driver!r}, which is no local file", path=named_in)
    allowed = {"driver", "file", "backing", "data-file"} if driver != "raw" else {"driver", "file"}
    _check_options(options, allowed, named_in)
    inner = options.get("file")
    if not isinstance(inner, dict):
        raise ImageError("has a json: name whose 'file' describes no file", path=named_in)
    while inner.get("driver") == "raw" and isinstance(inner.get("file"), dict):
        _check_options(inner, {"driver", "file"}, named_in)
        inner = inner["file"]
    is_descriptor = inner.get("driver") == "vmdk" and driver == "qcow2"
    if is_descriptor:
        _check_options(inner, {"driver", "file"}, named_in)
        inner = inner.get("file")
        if not isinstance(inner, dict):
            raise ImageError("has a json: name whose 'file' describes no file", path=named_in)
    if inner.get("driver", "file") not in _FILE_DRIVERS:
        raise PolicyError(
            f"has a json: name with the driver {inner['driver']!r}, which is no local file", path=named_in
        )
    _check_options(inner, {"driver", "filename"}, named_in)
    backing, data_file = options.get("backing"), options.get("data-file")
    for key, value in (("backing", backing), ("data-file", data_file)):
        if value is not None and not isinstance(value, dict):
            raise ImageError(f"has a json: name whose {key!r} is a node of a running QEMU", path=named_in)
    return Reference(
        path=_filename(inner, named_in),
        format=file_format or driver,
        follows_header="backing" not in options,
        backing=None if backing is None else _node(backing, named_in, None),
        data_file=None if data_file is None else _node(data_file, named_in, None),
        is_descriptor=is_descriptor,
    )


def _filename(options: dict[str, Any], named_in: str | None) -> str:
    """Return the path in the description of a file node."""
    filename = options.get("filename")
    if not isinstance(filename, str) or not filename or "\0" in filename:
        raise ImageError("has a json: name whose 'filename' is no file name", path=named_in)
    # Never a protocol, whether a driver is named or not (bdrv_find_protocol() without allow_protocol_prefix).
    return filename


def _check_options(options: dict[str, Any], known: set[str], named_in: str | None) -> None:
    for key in options:
        if key not in known and key not in _HARMLESS:
            raise ImageError(f"has a json: name with the option {key!r}, which is not supported", path=named_in)
