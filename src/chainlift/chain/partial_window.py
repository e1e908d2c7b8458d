"""A window that is being filled: what is still open, and what layers' tables say of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from chainlift.chain.window import Window
from chainlift.qcow2.layout import Kind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from chainlift.qcow2.mapping import Entries, Mapping

#: Granules whose open ones are counted together, to know early that a table need not be read.
_BUCKET_BITS = 12


class PartialWindow:
    """A window that is being filled."""

    def __init__(self, start: int, stop: int, granule: int) -> None:
        count = -(-(stop - start) // granule)
        self.window = Window(
            start=start,
            length=stop - start,
            granularity=granule,
            layer=np.full(count, -1, dtype=np.int32),
            kind=np.zeros(count, dtype=np.uint8),
            host_offset=np.full(count, -1, dtype=np.int64),
            stored_bytes=np.zeros(count, dtype=np.int32),
        )
        self._open = np.ones(count, dtype=bool)
        self.remaining = count
        buckets = -(-count >> _BUCKET_BITS)
        self._open_in_bucket = np.full(buckets, 1 << _BUCKET_BITS, dtype=np.int64)
        self._open_in_bucket[-1] = count - ((len(self._open_in_bucket) - 1) << _BUCKET_BITS)
        self._closed_from = count
        #: Whether there is any bucket with nothing open in it.
        self.has_closed_bucket = False

    def close_from(self, limit: int) -> None:
        """Close what lies at and after a guest offset: the layers from here on end there, and zeros follow."""
        first = max(0, -(-(limit - self.window.start) // self.window.granularity))
        if first >= self._closed_from:
            return
        self._close(first + np.flatnonzero(self._open[first : self._closed_from]))
        self._closed_from = first

    def has_open(self, begin: NDArray[np.int64], span: int) -> NDArray[np.bool_]:
        """Tell for spans of the disk, given by their guest offset and common length, whether anything is open there."""
        open_before = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(self._open_in_bucket)))
        granule = self.window.granularity
        first = np.maximum(0, (begin - self.window.start) // granule) >> _BUCKET_BITS
        last = np.minimum(len(self._open) - 1, (begin + span - 1 - self.window.start) // granule) >> _BUCKET_BITS
        wanted: NDArray[np.bool_] = open_before[last + 1] > open_before[first]
        return wanted

    def without_hidden(self, entries: Entries) -> Entries:
        """Return the entries of clusters of which something is open."""
        granule, size = self.window.granularity, entries.image.header.cluster_size
        open_before = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(self._open)))
        edges = (entries.cluster[:, None] + np.arange(2)) * size - self.window.start
        first, last = np.clip(edges // granule, 0, len(self._open)).T
        (seen,) = (open_before[last] > open_before[first]).nonzero()
        return replace(entries, cluster=entries.cluster[seen], words=entries.words[seen])

    def is_hidden(self, start: int, stop: int) -> bool:
        """Tell whether nothing is open between two guest offsets, in bytes."""
        granule = self.window.granularity
        first, last = max(0, (start - self.window.start) // granule), -(-(stop - self.window.start) // granule)
        return not self._open[first:last].any()

    def fill_raw(self, index: int) -> None:
        """Fill all that is open from a raw layer, in which guest offset and host offset are the same."""
        places = np.flatnonzero(self._open)
        self.window.layer[places] = index
        self.window.kind[places] = Kind.DATA
        self.window.host_offset[places] = self.window.start + places * self.window.granularity
        self._close(places)

    def fill(self, layer: NDArray[np.int64], mapping: Mapping, unit_size: int, ends_at: int) -> None:
        """Fill what is open from what layers' tables say.

        :param layer: each unit's layer, never decreasing; where several speak of one place, the first is right.
        :param ends_at: guest offset from which on there is nothing below the last of these layers.
        """
        granule = self.window.granularity
        per_unit = unit_size // granule
        places = mapping.unit * per_unit - self.window.start // granule
        kind, host, stored = mapping.kind, mapping.host_offset, mapping.stored_bytes
        if per_unit > 1:
            within = np.arange(per_unit, dtype=np.int64)
            places = (places[:, None] + within).ravel()
            has_place = (kind != Kind.COMPRESSED) & (host >= 0)
            host = (host[:, None] + has_place[:, None] * within * granule).ravel()
            layer, kind, stored = layer.repeat(per_unit), kind.repeat(per_unit), stored.repeat(per_unit)
        if int(places.min()) < 0 or int(places.max()) >= len(self._open):  # of clusters that are in it only in part
            (chosen,) = ((places >= 0) & (places < len(self._open))).nonzero()
            chosen = chosen[self._open[places[chosen]]]
        else:
            (chosen,) = self._open[places].nonzero()
        says_nothing = kind[chosen] == Kind.UNALLOCATED
        if says_nothing.any():
            # Allocated without content: the answer is further down, unless this layer is the last that reaches here.
            silent, chosen = chosen[says_nothing], chosen[~says_nothing]
            silent = silent[self.window.start + places[silent] * granule >= ends_at]
            self.window.host_offset[places[silent]] = host[silent]
        if len(chosen) and layer[chosen[0]] != layer[chosen[-1]]:
            chosen = chosen[places[chosen].argsort(kind="stable")]
            chosen = chosen[np.diff(places[chosen], prepend=-1).nonzero()[0]]
        places = places[chosen]
        self.window.layer[places] = layer[chosen]
        self.window.kind[places] = kind[chosen]
        self.window.host_offset[places] = host[chosen]
        self.window.stored_bytes[places] = stored[chosen]
        self._close(places)

    def _close(self, places: NDArray[np.int64]) -> None:
        self._open[places] = False
        self.remaining -= len(places)
        self._open_in_bucket -= np.bincount(places >> _BUCKET_BITS, minlength=len(self._open_in_bucket))
        self.has_closed_bucket = not self._open_in_bucket.all()
