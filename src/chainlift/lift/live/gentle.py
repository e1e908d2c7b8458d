"""How many extents of an index are not in the way of a running VM."""

from __future__ import annotations

from typing import Final

from chainlift import facts

#: Where all nodes are polled, what counts is extents times layers: this many take 0.2 s.
_PAIRS: Final = 10_000
_FEWEST_EXTENTS: Final = 8


def gentle_extents(version: tuple[int, int, int], layers: int) -> int:
    """Return how many extents an index may have so that a running QEMU hardly stops for it.

    :param version: of the QEMU.
    :param layers: in its chain.
    """
    if facts.POLLS_ALL.holds(version):
        return max(_FEWEST_EXTENTS, _PAIRS // max(layers, 1))
    return facts.GENTLE_EXTENTS.at(version)
