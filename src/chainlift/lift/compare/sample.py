"""Which pieces of a disk are compared where not all of it is: those in which a wrong lift would show.

At random over a mostly empty disk, a sample would read zeros. What can go wrong has places: a layer that is left out or
taken for another, the end of a layer that is shorter than what lies on it, the disk's last cluster, an extent that is
shifted against its neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from chainlift.lift.compare.spans import Content

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from chainlift.lift.compare.spans import Pair, Pieces

PIECE_BYTES: Final = 65536
#: How many pieces are compared, if so many of the disk are mapped.
SAMPLE: Final = 256
#: Files of which one piece is compared at least: of a longer chain, so many that are spread over it.
MOST_FILES: Final = 320
_MOST_ENDS: Final = 32
_MOST_AFTER_HOLES: Final = 16


def choose_sample(pair: Pair, *, seed: int = 0) -> list[tuple[int, int]]:
    """Choose the pieces of two chains to compare: the same ones for the same chains and seed.

    The first and the last piece of the disk; one of each file that is seen from the top on either side; where layers
    that are shorter than the disk end; where data begin after nothing; and anything mapped, until there are
    :data:`SAMPLE`.

    :return: offsets and lengths in bytes, ascending; they do not overlap.
    :raise ImageError: if a table that is needed is malformed or cut off.
    """
    generator = np.random.default_rng(seed)
    of_files: dict[int, int] = {}
    after_holes, anywhere = Lot(generator, _MOST_AFTER_HOLES), Lot(generator, SAMPLE)
    was_mapped = True
    for one, other in pair.pieces():
        mapped = (one.content != Content.ZERO) | (other.content != Content.ZERO)
        rows = np.flatnonzero(mapped)
        if len(rows):
            starts = _within(one.take(rows), generator)
            anywhere.add(one.start[rows], one.length[rows])
            for side, pieces in zip(pair.files, (one, other), strict=True):
                for file, offset in _first_of_each(side, pieces, rows, starts, generator):
                    of_files.setdefault(file, offset)
        begins = np.flatnonzero(mapped & ~np.concatenate(([was_mapped], mapped[:-1])))
        after_holes.add(one.start[begins], np.ones(len(begins), dtype=np.int64))
        was_mapped = bool(mapped[-1])
    ends = {size for side in (pair.one, pair.other) for size in side.chain.visible_sizes.tolist()}
    inner = sorted(end for end in ends if 0 < end < pair.size)
    needed = [
        *(0, pair.size - PIECE_BYTES),
        *(end - PIECE_BYTES // 2 for end in _spread(inner, _MOST_ENDS)),
        *_spread([of_files[file] for file in sorted(of_files)], MOST_FILES),
        *after_holes.drawn(),
    ]
    return disjoint(needed, anywhere.drawn(), pair.size)


def _within(pieces: Pieces, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return a place in each part, a whole number of pieces from its beginning."""
    return pieces.start + generator.integers(0, -(-pieces.length // PIECE_BYTES)) * PIECE_BYTES


def _first_of_each(
    files: NDArray[np.int64],
    pieces: Pieces,
    rows: NDArray[np.int64],
    starts: NDArray[np.int64],
    generator: np.random.Generator,
) -> Iterator[tuple[int, int]]:
    """Yield each file that these rows read, and one of the places in them, taken at random."""
    order = generator.permutation(len(rows))
    order = order[pieces.source[rows[order]] >= 0]
    found, first = np.unique(files[pieces.source[rows[order]]], return_index=True)
    yield from zip(found.tolist(), starts[order[first]].tolist(), strict=True)


class Lot:
    """A sample of a stream of unknown length: each piece has a key at random, and those with the least keys stay."""

    def __init__(self, generator: np.random.Generator, most: int) -> None:
        self._generator, self._most = generator, most
        self._keys = np.zeros(0)
        self._offsets = np.zeros(0, dtype=np.int64)

    def add(self, start: NDArray[np.int64], length: NDArray[np.int64]) -> None:
        """Take in all the pieces that parts of the disk consist of."""
        behind = np.cumsum(-(-length // PIECE_BYTES))
        total = int(behind[-1]) if len(behind) else 0
        count = min(total, self._most)
        number = self._generator.choice(total, count, replace=False) if count else np.zeros(0, dtype=np.int64)
        row = behind.searchsorted(number, side="right")
        first = behind[row] - -(-length[row] // PIECE_BYTES)
        # The least of so many keys, which need not all be drawn: the gaps between them are exponential.
        least = np.cumsum(self._generator.exponential(size=count) / (total - np.arange(count)))
        keys = np.concatenate((self._keys, least))
        offsets = np.concatenate((self._offsets, start[row] + (number - first) * PIECE_BYTES))
        chosen = np.argsort(keys, kind="stable")[: self._most]
        self._keys, self._offsets = keys[chosen], offsets[chosen]

    def drawn(self) -> list[int]:
        """Return where the pieces that stayed begin."""
        drawn: list[int] = self._offsets.tolist()
        return drawn


def _spread(values: list[int], most: int) -> list[int]:
    """Return so many of the values at most, evenly, the first and the last among them."""
    if len(values) <= most:
        return values
    return [values[round(number * (len(values) - 1) / (most - 1))] for number in range(most)]


def disjoint(needed: list[int], more: list[int], size: int) -> list[tuple[int, int]]:
    """Return pieces that begin at these offsets or cover them, of the second list as many as there may be.

    :param needed: offsets in bytes that must be in.
    :param more: offsets in bytes, the most wanted first.
    :param size: of the disk, in bytes.
    :return: start and end of each piece, in bytes, ascending.
    """
    last = max(0, size - PIECE_BYTES)
    begins = {min(max(0, offset), last) for offset in needed}
    for offset in more:
        if len(begins) >= SAMPLE:
            break
        begins.add(min(offset, last))
    pieces: list[tuple[int, int]] = []
    done = 0
    for offset in sorted(begins):
        start, end = max(offset, done), min(offset + PIECE_BYTES, size)
        if end > start:
            pieces.append((start, end - start))
        done = max(done, end)
    return pieces
