"""Names that QEMU gives to its nodes: what ``change-backing-file`` must write so that later snapshots have plain names.

A snapshot's overlay names the node below by that node's ``filename`` (``qmp_transaction``, external_snapshot_action()
in blockdev.c). ``bdrv_refresh_filename()`` (block.c) makes that a ``json:`` name with all options inside as soon as the
node's backing file was *overridden*: as soon as the name that its header gave, or that ``change-backing-file`` gave it
since, is not letter by letter the ``filename`` of its backing node (``bdrv_backing_overridden()``). So the name that is
written has to be QEMU's own: for a file opened by its path, the path as it was opened, which is absolute here; for an
index QEMU's spelling of the ``json:`` name. Both are the same on 7.2, 10.0 and 11.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from chainlift.lift.record.pointer import MAX_BACKING_NAME
from chainlift.lift.target import PROTOCOLS

if TYPE_CHECKING:
    from collections.abc import Mapping

_SHORT_ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_SPACE: Final = 0x20
_DELETE: Final = 0x7F


def qemu_name(options: Mapping[str, Any]) -> str | None:
    """Return the ``filename`` that QEMU gives to a node opened with these options; None where it is not certain.

    A backing file that is not in the options is taken to be the one that the header names.
    """
    name = _plain_name(options)
    if name is None and (index := _index_file(options)) is not None:
        # The order of the keys is that of QEMU's dictionaries, which has not changed.
        file = f'{{"driver": "file", "filename": {_quoted(index)}}}'
        name = f'json:{{"driver": "qcow2", "file": {{"driver": "vmdk", "file": {file}}}}}'
    # A path that is no UTF-8 cannot be said in QMP anyway.
    return name if name is not None and len(name.encode(errors="surrogateescape")) <= MAX_BACKING_NAME else None


def _plain_name(options: Mapping[str, Any]) -> str | None:
    """Return the path, of a node whose path alone makes QEMU open the same."""
    file = options.get("file")
    if "backing" in options or "data-file" in options or not isinstance(file, dict):
        return None
    return str(file["filename"]) if file.get("driver") in PROTOCOLS and "filename" in file else None


def _index_file(options: Mapping[str, Any]) -> str | None:
    descriptor = options.get("file")
    if options.get("driver") != "qcow2" or "backing" in options or not isinstance(descriptor, dict):
        return None
    file = descriptor.get("file")
    if descriptor.get("driver") != "vmdk" or not isinstance(file, dict) or file.get("driver") != "file":
        return None
    return str(file["filename"])


def _quoted(text: str) -> str:
    """Write a JSON string as QEMU does (quoted_str() in qobject/json-writer.c): ASCII only, digits in capitals."""
    written = []
    for character in text:
        if character in _SHORT_ESCAPES:
            written.append(_SHORT_ESCAPES[character])
        elif _SPACE <= ord(character) < _DELETE:
            written.append(character)
        else:
            units = character.encode("utf-16-be", errors="surrogatepass").hex().upper()
            written += [f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)]
    return f'"{"".join(written)}"'
