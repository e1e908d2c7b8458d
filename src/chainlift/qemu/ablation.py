"""What is changed in a program so that one of QEMU's functions returns at once.

A profile says where samples fall; it does not say what would be gained without a function. Taking it out does. Only
functions of which it is known what may take their place are in :data:`KNOWN`, and a program is changed only where its
code is what is known: the symbol is there, its caller has not inlined it, and it does what its source does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chainlift.errors import InputError
from chainlift.profiling.elf import functions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chainlift.profiling.elf import Elf, Function

#: x86-64: ``endbr64``, where an indirect call may land; ``mov $1, %eax; ret``; ``test %al, %al``.
_ENDBR64: Final = bytes.fromhex("f30f1efa")
_RETURN_TRUE: Final = bytes.fromhex("b801000000c3")
_TEST_RESULT: Final = bytes.fromhex("84c0")
#: ``call`` and ``jmp`` with a displacement of 32 bits.
_BRANCHES: Final = (0xE8, 0xE9)


@dataclass(frozen=True)
class Ablation:
    """A function that may return true at once.

    :ivar symbols: its names, those of newer releases first; the first one that a program has is meant.
    :ivar caller: who must call it by its symbol: else it has been inlined, and changing it would change nothing.
    :ivar recurses: whether it calls itself, and looks at what that returns.
    """

    symbols: tuple[str, ...]
    caller: str
    recurses: bool


KNOWN: Final = {
    # block.c: whether there is a medium in the drive. A node is inserted if all its children are; only a host's CD
    # drive ever says no. From 8.0 on `bdrv_is_inserted` is a wrapper that is generated (block/block-gen.c), and reads
    # call the coroutine's function.
    "bdrv_is_inserted": Ablation(("bdrv_co_is_inserted", "bdrv_is_inserted"), "bdrv_co_preadv_part", recurses=True),
}


@dataclass(frozen=True)
class Change:
    """Bytes that take the place of as many in a program's file."""

    symbol: str
    file_offset: int
    code: bytes

    def applied(self, data: bytes) -> bytes:
        """Return a program's bytes with the change."""
        return data[: self.file_offset] + self.code + data[self.file_offset + len(self.code) :]


def change_of(elf: Elf, function: str) -> Change:
    """Return what is to be changed in a program.

    :param elf: the program.
    :param function: a name in :data:`KNOWN`.
    :raise InputError: if nothing is known of the function, of the program's machine or of its code, or if the program
        has no such symbol.
    """
    ablation = KNOWN.get(function)
    if ablation is None:
        raise InputError(f"nothing is known of what {function} may be replaced by", hint=f"known: {', '.join(KNOWN)}")
    if elf.machine != "x86_64":
        raise InputError(
            f"is a program for {elf.machine}", path=elf.path, hint="functions can be taken out of x86-64 programs"
        )
    named = {one.name: one for table in (".symtab", ".dynsym") for one in functions(elf, table)}
    found = next((named[symbol] for symbol in ablation.symbols if symbol in named), None)
    if found is None:
        raise InputError(f"has no symbol {' or '.join(ablation.symbols)}", path=elf.path)
    symbol = str(found.name)
    offset = elf.offset_of(found.address)
    code = b"" if offset is None else elf.data[offset : offset + found.size]
    if offset is None or len(code) < found.size:
        raise InputError(f"has no code for {symbol}", path=elf.path)
    start = len(_ENDBR64) if code.startswith(_ENDBR64) else 0
    if code[start:].startswith(_RETURN_TRUE):
        raise InputError(f"has a {symbol} that returns at once already", path=elf.path)
    caller = named.get(ablation.caller)
    if caller is None or found.address not in _branch_targets(elf, caller):
        raise InputError(f"does not call {symbol} in {ablation.caller}: it is inlined", path=elf.path)
    if ablation.recurses and not _looks_at_itself(elf, found):
        raise InputError(f"has another {symbol} than is known: it does not recurse", path=elf.path)
    if len(code) < start + len(_RETURN_TRUE):
        raise InputError(f"has no room for a change in {symbol}", path=elf.path)
    return Change(symbol, offset + start, _RETURN_TRUE)


def _looks_at_itself(elf: Elf, function: Function) -> bool:
    """Whether a function calls itself and tests the byte that comes back."""
    offset = elf.offset_of(function.address)
    return offset is not None and any(
        target == function.address and elf.data[end : end + len(_TEST_RESULT)] == _TEST_RESULT
        for end, target in _branches(elf, offset, function)
    )


def _branch_targets(elf: Elf, function: Function) -> set[int]:
    offset = elf.offset_of(function.address)
    return set() if offset is None else {target for _, target in _branches(elf, offset, function)}


def _branches(elf: Elf, offset: int, function: Function) -> Iterator[tuple[int, int]]:
    """Yield each place in a function that reads like a direct call or jump: the offset behind it, and where it leads.

    Bytes are looked at one by one, not as instructions: what is none leads anywhere, and to one certain function by a
    chance of one in 2**32.
    """
    for at in range(offset, offset + function.size - 4):
        if elf.data[at] in _BRANCHES:
            displacement = int.from_bytes(elf.data[at + 1 : at + 5], "little", signed=True)
            yield at + 5, function.address + at + 5 - offset + displacement
