"""Digests of what layers' L2 tables say: whether a table is what it was, without keeping it.

The digest is of the tables' meaning (unit, host offset, kind and stored length of all they speak of) and not of their
bytes: a table is mostly zeros, and 700 MB of tables would take longer to hash than to merge. What is not in it is the
COPIED flag, which changes nothing that is read.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from chainlift.qcow2.mapping import Mapping, TableReader, Tables, decode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chainlift.qcow2.image import Image

#: L1 entries that are looked at together.
_STRIDE = 1024


class TablesDigest:
    """A digest in the making; it does not depend on how the tables were divided into calls of :meth:`add`."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._next_unit = 0

    def add(self, mapping: Mapping) -> None:
        """Take in what some tables say, in ascending order; what an earlier call had (windows overlap) only once."""
        chosen = slice(int(np.searchsorted(mapping.unit, self._next_unit)), None)
        count = len(mapping.unit[chosen])
        if not count:
            return
        self._next_unit = int(mapping.unit[-1]) + 1
        rows = np.empty((count, 3), dtype="<i8")
        rows[:, 0] = mapping.unit[chosen]
        rows[:, 1] = mapping.host_offset[chosen]
        rows[:, 2] = mapping.stored_bytes[chosen].astype(np.int64) << 8 | mapping.kind[chosen]
        self._sha256.update(rows.data)

    def hexdigest(self) -> str:
        """Return it."""
        return self._sha256.hexdigest()


def digest_tables(image: Image, span: int) -> str:
    """Return the digest of an image's L2 tables.

    :param span: bytes of the disk that count, from its start.
    :raise ImageError: if a table is malformed or cut off.
    """
    digest = TablesDigest()
    for _, entries in TableReader().read(_all_tables(image, span)):
        digest.add(decode([entries]))
    return digest.hexdigest()


def _all_tables(image: Image, span: int) -> Iterator[Tables]:
    count = -(-span // image.table_span)
    for first in range(0, count, _STRIDE):
        offsets = image.l2_offsets(first, min(first + _STRIDE, count))
        used = np.flatnonzero(offsets)
        yield Tables(first, image, used + first, offsets[used], 0, span)
