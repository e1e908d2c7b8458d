"""What chainlift needs of an ELF file: its machine, build ID, segments, function symbols, and where functions lie.

References: the ELF specification (gABI) and, for ``.eh_frame``, the Linux Standard Base, chapter "Exception Frames".
Only 64-bit little-endian files are read, which is what QEMU profiles come from.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from chainlift.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_PT_LOAD, _PT_NOTE = 1, 4
_SHT_SYMTAB, _SHT_NOTE, _SHT_NOBITS, _SHT_DYNSYM = 2, 7, 8, 11
_STT_FUNC, _STT_GNU_IFUNC = 2, 10
_NT_GNU_BUILD_ID = 3
#: ``e_machine`` -> the name that ``uname -m`` uses.
MACHINES = {3: "i686", 21: "ppc64le", 22: "s390x", 40: "armv7l", 62: "x86_64", 183: "aarch64", 243: "riscv64"}


class Section(NamedTuple):
    """A section header."""

    name: str
    kind: int
    address: int
    offset: int
    size: int
    link: int


class Segment(NamedTuple):
    """A ``PT_LOAD`` program header: ``size`` bytes at file offset ``offset`` are mapped at ``address``."""

    offset: int
    address: int
    size: int


class Function(NamedTuple):
    """A function: ``size`` bytes at virtual address ``address``; the name is None where only its place is known."""

    address: int
    size: int
    name: str | None


@dataclass(frozen=True)
class Elf:
    """An ELF file, its bytes and its tables of contents."""

    path: Path
    data: bytes
    machine: str
    sections: tuple[Section, ...]
    segments: tuple[Segment, ...]

    def section(self, name: str) -> Section | None:
        """Return the section of this name that has bytes in the file."""
        return next((s for s in self.sections if s.name == name and s.kind != _SHT_NOBITS and s.size), None)

    def bytes_of(self, section: Section) -> bytes:
        """Return a section's bytes."""
        return self.data[section.offset : section.offset + section.size]

    def address_of(self, file_offset: int) -> int | None:
        """Return the virtual address at which a byte of the file is mapped."""
        for segment in self.segments:
            if segment.offset <= file_offset < segment.offset + segment.size:
                return file_offset - segment.offset + segment.address
        return None

    def offset_of(self, address: int) -> int | None:
        """Return where in the file the byte lies that is mapped at a virtual address."""
        for segment in self.segments:
            if segment.address <= address < segment.address + segment.size:
                return address - segment.address + segment.offset
        return None

    @property
    def build_id(self) -> str | None:
        """The build ID in hexadecimal, under which a debug file is found."""
        for section in self.sections:
            if section.kind == _SHT_NOTE and (found := _build_id(self.bytes_of(section))):
                return found
        return None


def read_elf(path: Path, data: bytes | None = None) -> Elf:
    """Read an ELF file's headers.

    :param data: its bytes, where they are at hand.
    :raise InputError: if it is no 64-bit little-endian ELF file.
    """
    if data is None:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", path=path) from error
    if data[:6] != b"\x7fELF\x02\x01" or len(data) < _HEADER.size:
        raise InputError("is not a 64-bit little-endian ELF file", path=path)
    try:
        head = _HEADER.unpack_from(data)
        machine = MACHINES.get(head[2], f"machine {head[2]}")
        segments = tuple(_segments(data, head[5], head[9], head[10]))
        sections = tuple(_sections(data, head[6], head[11], head[12], head[13]))
    except (struct.error, IndexError) as error:
        raise InputError("is a damaged ELF file", path=path) from error
    return Elf(path, data, machine, sections, segments)


def machine_of(path: Path) -> str | None:
    """Return the machine that a program is built for as ``uname -m`` names it, or None where it is no ELF file."""
    try:
        with path.open("rb") as stream:
            head = stream.read(20)
    except OSError:
        return None
    if head[:4] != b"\x7fELF" or len(head) < 20:
        return None
    number = int.from_bytes(head[18:20], "little" if head[5] == 1 else "big")
    return MACHINES.get(number, f"machine {number}")


def functions(elf: Elf, table: str) -> list[Function]:
    """Return the function symbols of ``.symtab`` or ``.dynsym`` that have a place and a size, in order of address."""
    kind = {".symtab": _SHT_SYMTAB, ".dynsym": _SHT_DYNSYM}[table]
    found: dict[int, Function] = {}
    for section in elf.sections:
        if section.kind != kind or section.link >= len(elf.sections):
            continue
        strings = elf.bytes_of(elf.sections[section.link])
        symbols = elf.bytes_of(section)
        symbols = symbols[: len(symbols) - len(symbols) % _SYMBOL.size]
        for name_at, info, _, index, address, size in _SYMBOL.iter_unpack(symbols):
            if info & 0xF in (_STT_FUNC, _STT_GNU_IFUNC) and index and size:
                function = Function(address, size, _string(strings, name_at))
                # Of several names for one place the global one is the one that people know.
                if address not in found or info >> 4 == 1:
                    found[address] = function
    return sorted(found.values())


def frame_ranges(elf: Elf) -> list[Function]:
    """Return where functions begin and end according to ``.eh_frame``, without names.

    It is there in every stripped program that can be unwound, and lists the static functions too.
    """
    section = elf.section(".eh_frame")
    if section is None:
        return []
    data = elf.bytes_of(section)
    encodings: dict[int, int | None] = {}
    found = []
    position = 0
    while position + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, position)
        start = position + 4
        if length in (0, 0xFFFFFFFF) or start + length > len(data):
            break
        (cie,) = struct.unpack_from("<I", data, start)
        if cie == 0:
            encodings[position] = _pointer_encoding(data, start + 4)
        # DW_EH_PE_pcrel | DW_EH_PE_sdata4: what compilers for 64-bit machines write; others are left out.
        elif encodings.get(start - cie) == 0x1B:
            relative, size = struct.unpack_from("<iI", data, start + 4)
            found.append(Function(section.address + start + 4 + relative, size, None))
        position = start + length
    return sorted(function for function in found if function.size)


def _pointer_encoding(data: bytes, position: int) -> int | None:
    """Return how the FDEs of the CIE whose version byte is at ``position`` encode addresses."""
    end = data.index(b"\0", position + 1)
    augmentation = data[position + 1 : end]
    position = end + 1
    for _ in range(3):  # code alignment, data alignment, return address register: LEB128
        position = _after_leb128(data, position)
    if not augmentation.startswith(b"z"):
        return None
    position = _after_leb128(data, position)
    for letter in augmentation[1:]:
        if letter == ord("R"):
            return data[position]
        if letter == ord("P"):
            position += 1 + {0: 8, 3: 4, 4: 8}.get(data[position] & 0x07, 4)
        elif letter == ord("L"):
            position += 1
    return None


def _after_leb128(data: bytes, position: int) -> int:
    while data[position] & 0x80:
        position += 1
    return position + 1


def _segments(data: bytes, offset: int, size: int, count: int) -> Iterator[Segment]:
    for index in range(count):
        kind, _, at, address, _, in_file, _, _ = _PROGRAM_HEADER.unpack_from(data, offset + index * size)
        if kind == _PT_LOAD:
            yield Segment(at, address, in_file)


def _sections(data: bytes, offset: int, size: int, count: int, names_index: int) -> Iterator[Section]:
    if not offset or not count:
        return
    headers = [_SECTION_HEADER.unpack_from(data, offset + index * size) for index in range(count)]
    _, _, _, _, names_at, names_size, *_ = headers[names_index]
    names = data[names_at : names_at + names_size]
    for name, kind, _, address, at, length, link, *_ in headers:
        yield Section(_string(names, name), kind, address, at, length, link)


def _build_id(note: bytes) -> str | None:
    position = 0
    while position + 12 <= len(note):
        name_size, size, kind = struct.unpack_from("<III", note, position)
        name_at = position + 12
        at = name_at + (name_size + 3) // 4 * 4
        if kind == _NT_GNU_BUILD_ID and note[name_at : name_at + 4] == b"GNU\0":
            return note[at : at + size].hex()
        position = at + (size + 3) // 4 * 4
    return None


def _string(table: bytes, position: int) -> str:
    end = table.find(b"\0", position)
    return table[position : end if end >= 0 else None].decode("utf-8", "replace")
