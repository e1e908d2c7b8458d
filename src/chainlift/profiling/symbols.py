"""Names for the addresses in a profile.

A name is given only where the address lies inside a symbol's own size: an address between two symbols belongs to a
function that this file does not name, never to the symbol before it. Such a function is still told from its
neighbours by where ``.eh_frame`` says that it begins.
"""

from __future__ import annotations

import lzma
import os
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.errors import InputError, MissingToolError, OperationError
from chainlift.host.process import run_tool
from chainlift.profiling.elf import Elf, Function, frame_ranges, functions, read_elf

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Where distributions put the debug files of installed packages.
DEBUG_ROOT = Path("/usr/lib/debug")
#: A debuginfod server that has not sent a file by then is done without; QEMU's are some 100 MB.
_DEBUGINFOD_S = 600.0


@dataclass(frozen=True)
class Symbols:
    """The functions of one file.

    :ivar source: where the names come from: ``symbol table``, ``dynamic symbols``, ``debug file /usr/lib/debug/...``.
    :ivar complete: whether static functions have names too.
    """

    elf: Elf
    source: str
    named: Sequence[Function]
    ranges: Sequence[Function]
    complete: bool = True

    def name_at(self, address: int) -> str | None:
        """Return the function that the address lies in, or None where no symbol covers it."""
        function = _covering(self.named, address)
        return None if function is None else function.name

    def nameless_at(self, address: int) -> int | None:
        """Return where the function begins that the address lies in, known without its name."""
        function = _covering(self.ranges, address)
        return None if function is None else function.address

    @property
    def hint(self) -> str | None:
        """What would give more names, or None where all are there."""
        if self.complete:
            return None
        what = "no symbols" if not self.named else "no symbols of static functions"
        package = "qemu-system-x86-dbgsym" if "system" in self.elf.path.name else "qemu-utils-dbgsym"
        return (
            f"{what} for {self.elf.path} (build ID {self.elf.build_id or 'none'}): install its debug symbols "
            f"(Debian: {package}), set DEBUGINFOD_URLS, or give --symbols"
        )


def load_symbols(path: Path, extra: Path | None = None) -> Symbols:
    """Return the best symbols that can be had for a file.

    Tried in this order: ``extra`` (``--symbols``), the file's own symbol table, a debug file by build ID, debuginfod
    (only where ``$DEBUGINFOD_URLS`` is set), the compressed symbols in the file (``.gnu_debugdata``), the dynamic ones.

    :raise InputError: if the file, or ``extra``, is no ELF file.
    """
    elf = read_elf(path)
    ranges = frame_ranges(elf)
    build_id = elf.build_id
    if extra is not None:
        return Symbols(elf, f"--symbols {extra}", functions(read_elf(extra), ".symtab"), ranges)
    if own := functions(elf, ".symtab"):
        return Symbols(elf, "symbol table", own, ranges)
    for look_up in (_debug_file, _debuginfod):
        debug = look_up(build_id) if build_id else None
        if debug and (found := _symbols_of(debug)):
            return Symbols(elf, f"debug file {debug}", found, ranges)
    dynamic = functions(elf, ".dynsym")
    if compressed := _compressed_symbols(elf):
        return Symbols(elf, "symbols in .gnu_debugdata", _merged(compressed, dynamic), ranges)
    return Symbols(elf, "dynamic symbols" if dynamic else "none", dynamic, ranges, complete=False)


def is_named(path: Path) -> bool:
    """Say whether a file's static functions have names here, without asking anybody else for them.

    :raise InputError: if it is no ELF file.
    """
    elf = read_elf(path)
    return bool(elf.section(".symtab") or (elf.build_id and _debug_file(elf.build_id)) or elf.section(".gnu_debugdata"))


def _covering(table: Sequence[Function], address: int) -> Function | None:
    index = bisect_right(table, address, key=lambda function: function.address) - 1
    if index >= 0 and address < table[index].address + table[index].size:
        return table[index]
    return None


def _debug_file(build_id: str) -> Path | None:
    path = DEBUG_ROOT / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug"
    return path if path.is_file() else None


def _debuginfod(build_id: str) -> Path | None:
    if not os.environ.get("DEBUGINFOD_URLS"):
        return None
    try:
        done = run_tool(["debuginfod-find", "debuginfo", build_id], check=False, timeout_s=_DEBUGINFOD_S)
    except (MissingToolError, OperationError):
        return None
    path = Path(done.stdout.strip())
    return path if done.returncode == 0 and path.is_file() else None


def _symbols_of(path: Path) -> list[Function]:
    """Return the functions of a debug file; none where it is damaged: a profile is worth having with fewer names."""
    try:
        return functions(read_elf(path), ".symtab")
    except InputError:
        return []


def _compressed_symbols(elf: Elf) -> list[Function]:
    section = elf.section(".gnu_debugdata")
    if section is None:
        return []
    try:
        return functions(read_elf(elf.path, lzma.decompress(elf.bytes_of(section))), ".symtab")
    except (lzma.LZMAError, InputError):
        return []


def _merged(first: list[Function], second: list[Function]) -> list[Function]:
    return sorted({function.address: function for function in (*second, *first)}.values())
