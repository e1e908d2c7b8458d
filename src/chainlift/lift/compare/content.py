"""Comparing what two chains read, byte by byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from chainlift.chain import Chain

_STEP_BYTES: Final = 32 << 20


def first_difference(one: Chain, other: Chain, progress: Callable[[int], None] | None = None) -> int | None:
    """Return the first offset at which two chains read different bytes, None if there is none.

    The shorter disk is taken to be followed by zeros, as a backing file is.

    :param progress: called with the bytes compared so far.
    """
    size = max(one.virtual_size, other.virtual_size)
    for offset in range(0, size, _STEP_BYTES):
        length = min(_STEP_BYTES, size - offset)
        ours, theirs = _read(one, offset, length), _read(other, offset, length)
        if ours != theirs:
            differs = np.frombuffer(ours, np.uint8) != np.frombuffer(theirs, np.uint8)
            return offset + int(differs.argmax())
        if progress is not None:
            progress(offset + length)
    return None


def _read(chain: Chain, offset: int, length: int) -> bytes:
    there = max(0, min(length, chain.virtual_size - offset))
    return (chain.read(offset, there) if there else b"").ljust(length, b"\0")
