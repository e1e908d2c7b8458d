"""A chain of layers, open for reading."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Self

import numpy as np

from chainlift.chain.resolve import Resolver
from chainlift.errors import InputError
from chainlift.host.closing import Closing
from chainlift.qcow2.layout import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from chainlift.chain.digest import TablesDigest
    from chainlift.chain.layer import Layer
    from chainlift.chain.window import Window

#: Granularity of a chain that has no clusters at all: a raw file.
_RAW_GRANULARITY = 65536


class Chain(Closing):
    """A chain of layers; made by :func:`~chainlift.chain.opening.open_chain`.

    :param layers: the active layer first, the base last, as qemu-img counts depth.
    """

    def __init__(self, layers: tuple[Layer, ...]) -> None:
        #: The active layer first, the base last.
        self.layers: tuple[Layer, ...] = layers
        units = [layer.unit_size for layer in layers if layer.unit_size is not None]
        #: Bytes in a granule of a window: the smallest cluster or subcluster of any layer.
        self.granularity: int = min(units, default=_RAW_GRANULARITY)
        sizes = np.array([layer.virtual_size for layer in layers], dtype=np.int64)
        #: How much of each layer can be seen from the top, in bytes from its start: no layer is seen past the end of
        #: a shorter one above it. int64, never increasing.
        self.visible_sizes: NDArray[np.int64] = np.minimum.accumulate(sizes)
        self._is_closed = False
        #: The layers' files, links followed, when somebody first asked.
        self._resolved: list[str] | None = None

    def __enter__(self) -> Self:
        self.require_open()
        return self

    def close(self) -> None:
        """Close every file; what the layers say of themselves stays, but nothing can be read any more."""
        self._is_closed = True
        for layer in self.layers:
            layer.file.close()
            layer.data_file.close()

    def require_open(self) -> None:
        """Refuse to go on with a chain that was closed: its files would be opened again, and never be closed.

        :raise InputError: if it was.
        """
        if self._is_closed:
            raise InputError("is closed", path=self.layers[0].path, hint="read a chain before its 'with' block ends")

    def find_layer(self, name: str | os.PathLike[str]) -> int:
        """Return the number of the layer that a person means: by a path, or by the name that its file has.

        A file that is there and is no layer is not taken for one of the same name.

        :param name: of the layer.
        :return: 0: the active layer.
        :raise InputError: if it is none of the chain, or several have the name.
        """
        if self._resolved is None:
            self._resolved = [os.path.realpath(layer.path) for layer in self.layers]
        wanted = os.path.realpath(name)
        found = [number for number, path in enumerate(self._resolved) if path == wanted]
        if not found and not os.path.lexists(name):
            paths = [os.path.basename(layer.path) for layer in self.layers]  # noqa: PTH119
            found = [number for number, path in enumerate(paths) if path == os.fspath(name)]
        if len(found) != 1:
            what = "is the name of several layers of the chain" if found else "is no layer of the chain"
            raise InputError(what, path=name, hint="name one by its path: chainlift inspect --all lists them")
        return found[0]

    @property
    def length(self) -> int:
        """Layers over the base, as snapshots are counted."""
        return len(self.layers) - 1

    @property
    def virtual_size(self) -> int:
        """Bytes of the disk that a guest sees."""
        return self.layers[0].virtual_size

    def resolve(
        self, start: int = 0, end: int | None = None, *, digests: Sequence[TablesDigest] | None = None
    ) -> Iterator[Window]:
        """Resolve the chain: yield windows that cover the disk (or a part of it) without gaps, in ascending order.

        >>> with open_chain("disk.qcow2") as chain:
        ...     for window in chain.resolve(0, 65536):
        ...         print(window.start, window.length, chain.layers[int(window.layer[0])].path)
        0 65536 layer0.qcow2

        :param start: guest offset in bytes, rounded down to a granule.
        :param end: guest offset in bytes, rounded up to a granule; None: the disk's end.
        :param digests: None, or one for each layer, to take in what its tables say: then no table is left unread.
        :raise ImageError: if a table that is needed is malformed or cut off.
        :raise InputError: if the chain is closed, or is before the last window.
        """
        self.require_open()
        return Resolver(self, digests=digests).windows(start, self.virtual_size if end is None else end)

    def fall_depth(self, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the layer at which the search ends for offsets that no layer has: the last one that reaches them."""
        depth = np.searchsorted(-self.visible_sizes, -offsets, side="left") - 1
        return np.maximum(depth, 0)

    def read(self, offset: int, length: int) -> bytes:
        """Read what a guest would read.

        Meant for tests and small tools: windows are resolved anew for every call.

        :param offset: in bytes.
        :param length: in bytes.
        :return: just so many bytes.
        :raise InputError: if the range is not on the disk, or the chain is closed.
        :raise ImageError: if a layer is malformed or encrypted.
        """
        self.require_open()
        if offset < 0 or length < 0 or offset + length > self.virtual_size:
            raise InputError(
                f"bytes {offset} to {offset + length} are not on a disk of {self.virtual_size}",
                path=self.layers[0].path,
            )
        end = offset + length
        content = bytearray(length)
        for window in self.resolve(offset, end):
            runs = window.runs()
            columns = (runs.start, runs.length, runs.layer, runs.kind, runs.host_offset, runs.stored_bytes)
            for start, size, layer, kind, host, stored in zip(*(column.tolist() for column in columns), strict=True):
                first, last = max(start, offset), min(start + size, end)
                if first < last and kind in (Kind.DATA, Kind.COMPRESSED):
                    piece = _read_piece(self.layers[layer], kind, first, last - first, host, first - start, stored)
                    content[first - offset : last - offset] = piece
        return bytes(content)


def _read_piece(layer: Layer, kind: int, guest: int, length: int, host: int, skip: int, stored: int) -> bytes:
    if layer.image is None:
        return layer.file.pread(host + skip, length).ljust(length, b"\0")
    if kind == Kind.DATA:
        return layer.image.read_data(host + skip, length)
    cluster = layer.image.read_compressed(host, stored)
    within = guest % len(cluster)
    # Neighbours with the same descriptor, should there be any, have the same content.
    return (cluster * (2 + length // len(cluster)))[within : within + length]
