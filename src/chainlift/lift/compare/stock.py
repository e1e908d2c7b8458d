"""A look before the switch: stock QEMU must read through the new pointer what it reads through the old one.

A storage daemon of our own opens both, so that nobody's main loop is burdened and nobody's disk is at risk.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from chainlift.errors import AnswerIsNo, ImageError, QemuCrashed, QemuError
from chainlift.lift.compare.content import PieceReader, difference
from chainlift.lift.compare.daemon import ReadingDaemon
from chainlift.lift.compare.sample import choose_sample
from chainlift.lift.compare.spans import Pair, ignore
from chainlift.lift.record.pointer import open_pointer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from chainlift.chain import Chain
    from chainlift.lift.compare.spans import Pieces
    from chainlift.lift.record.manifest import Pointer
    from chainlift.qemu.binary import Qemu
    from chainlift.qemu.nbd import NbdClient

    #: Fills buffers, each with what begins at an offset of the disk.
    _Read = Callable[[Iterable[tuple[memoryview, int]]], None]

#: Up to here every stock QEMU reads (:data:`chainlift.facts.LONGEST_READ`), also where its build uses more stack.
MOST_LAYERS: Final = 800
#: Pieces of the sample that are read together: 4 MiB.
_AT_A_TIME: Final = 64


@dataclass(frozen=True)
class Compared:
    """What was compared, and who has read it."""

    #: Pieces of the sample.
    pieces: int
    sample_bytes: int
    #: With ``content``: bytes that are not provably the same, all compared; else 0.
    content_bytes: int
    #: Whether stock QEMU has read the sample through the old pointer. It cannot where more than :data:`MOST_LAYERS` lie
    #: under it: then our own reader alone has.
    old_by_stock: bool
    #: Whether stock QEMU has read through the new pointer; it has opened it in any case.
    new_by_stock: bool


def compare_stock(
    qemu: Qemu,
    image: Path,
    old: Pointer,
    new: Pointer,
    *,
    content: bool,
    progress: Callable[[int], None] | None = None,
) -> Compared:
    """Compare what an image reads below itself with what it would read through another pointer, by stock QEMU.

    :param qemu: whose storage daemon reads.
    :param image: names in the pointers are as in its header. It is not opened, and may be in use; so may what is below
        it, as long as nobody writes there.
    :param content: compare everything that does not provably lie in the same place of the same files, instead of a
        sample alone. The old side of it is read by our own reader: through 300 layers QEMU would take minutes.
    :param progress: called with the bytes of the disk that are compared, or need not be; only with ``content``.
    :raise AnswerIsNo: naming the first byte that differs of those that were compared.
    :raise QemuError: if the new side cannot be opened or read.
    :raise ImageError: if the old side cannot: the disk as it is does not open. Also if a chain is malformed.
    :raise MissingToolError: if this QEMU has no storage daemon.
    """
    with open_pointer(image, old) as before, open_pointer(image, new) as after, ReadingDaemon(qemu) as daemon:
        pair = Pair(before, after, on_shared=ignore)
        old_by_stock, new_by_stock = len(before.layers) <= MOST_LAYERS, len(after.layers) <= MOST_LAYERS
        if old_by_stock:
            try:
                daemon.open("old", image, old, pair.size)
            except QemuError as error:
                raise _does_not_open(image, error) from error
        try:
            daemon.open("new", image, new, pair.size)
        except QemuCrashed:
            raise
        except QemuError as error:
            raise QemuError(f"what it would stand on cannot be opened by QEMU: {error.what}", path=image) from error
        with ExitStack() as stack:
            read_old, read_new = _by_ourselves(before), _by_ourselves(after)
            if old_by_stock:
                read_old = _reading_old(stack.enter_context(daemon.connect("old")), daemon, image)
            client = stack.enter_context(daemon.connect("new")) if new_by_stock else None
            if client is not None:
                read_new = client.read_into
            pieces = choose_sample(pair)
            try:
                _compare_sample(image, pieces, read_old, read_new)
                compared = _compare_content(image, pair, client, progress) if content else 0
            except QemuError as error:
                raise daemon.explain(error) from error
        return Compared(len(pieces), sum(length for _, length in pieces), compared, old_by_stock, new_by_stock)


def why_not_open(qemu: Qemu, image: Path, pointer: Pointer) -> str | None:
    """Return what stock QEMU says against opening what a backing name leads to, None if it opens.

    :param image: as for :func:`compare_stock`.
    :raise MissingToolError: if this QEMU has no storage daemon.
    """
    with ReadingDaemon(qemu) as daemon:
        try:
            daemon.open("new", image, pointer, 512)
        except QemuError as error:
            return error.what
    return None


def _compare_sample(image: Path, pieces: Sequence[tuple[int, int]], read_old: _Read, read_new: _Read) -> None:
    """Compare pieces, some at a time: to wait for each answer takes longer than the reading, on a busy host."""
    for first in range(0, len(pieces), _AT_A_TIME):
        some = pieces[first : first + _AT_A_TIME]
        before, after = ([bytearray(length) for _, length in some] for _ in range(2))
        for read, buffers in ((read_old, before), (read_new, after)):
            read((memoryview(buffer), offset) for buffer, (offset, _) in zip(buffers, some, strict=True))
        for (offset, length), one, other in zip(some, before, after, strict=True):
            if one != other:
                raise _differs(image, offset + next(i for i in range(length) if one[i] != other[i]))


def _compare_content(image: Path, pair: Pair, client: NbdClient | None, progress: Callable[[int], None] | None) -> int:
    compared = 0

    def read_old(buffer: memoryview, pieces: Pieces) -> None:
        nonlocal compared
        compared += len(buffer)
        ours.fill(buffer, pieces)

    ours = PieceReader(pair.one)
    fill_new = PieceReader(pair.other).fill if client is None else filling(client)
    at = difference(pair, read_old, fill_new, progress, ahead=client is not None)
    if at is not None:
        raise _differs(image, at)
    return compared


def filling(client: NbdClient) -> Callable[[memoryview, Pieces], None]:
    """Return what reads parts of a disk through a connection, for :func:`~.content.difference`."""

    def fill(buffer: memoryview, pieces: Pieces) -> None:
        client.read_into(_requests(buffer, pieces))

    return fill


def _requests(buffer: memoryview, pieces: Pieces) -> Iterator[tuple[memoryview, int]]:
    """Yield where to read what: parts that follow each other on the disk are one request."""
    end = pieces.start + pieces.length
    first = np.flatnonzero(np.append(True, pieces.start[1:] != end[:-1]))
    at = 0
    for start, length in zip(pieces.start[first].tolist(), np.add.reduceat(pieces.length, first).tolist(), strict=True):
        yield buffer[at : at + length], start
        at += length


def _by_ourselves(chain: Chain) -> _Read:
    def read(parts: Iterable[tuple[memoryview, int]]) -> None:
        for buffer, offset in parts:
            there = max(0, min(len(buffer), chain.virtual_size - offset))
            buffer[:there] = chain.read(offset, there) if there else b""

    return read


def _reading_old(client: NbdClient, daemon: ReadingDaemon, image: Path) -> _Read:
    def read(parts: Iterable[tuple[memoryview, int]]) -> None:
        try:
            client.read_into(parts)
        except QemuError as error:
            raise _does_not_open(image, daemon.explain(error)) from error

    return read


def _does_not_open(image: Path, error: QemuError) -> ImageError:
    return ImageError(
        f"what it stands on cannot be read by QEMU as it is: {error.what}",
        path=image,
        hint="the disk is broken, or a layer is in use: see what chainlift inspect says",
    )


def _differs(image: Path, at: int) -> AnswerIsNo:
    return AnswerIsNo(
        f"what it would stand on reads differently at byte {at} of the disk; nothing was switched",
        path=image,
        hint="run chainlift verify --content and report this",
    )
