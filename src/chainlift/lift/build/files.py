"""The files that a chain's clusters lie in: one a layer, and where a layer is an index all that it points into."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from chainlift.chain.linear import ExtentsFile
from chainlift.errors import ImageError
from chainlift.qcow2.compression import decompress_cluster
from chainlift.qcow2.layout import CompressionType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from chainlift.chain import Chain, Layer
    from chainlift.qcow2.file import ImageFile


@dataclass(frozen=True)
class SourceFile:
    """A file with clusters."""

    file: ImageFile
    #: Byte of the file that host offsets count from.
    base: int
    #: Bytes from there on that may be pointed at.
    length: int
    #: Of the layer whose clusters they are; 0 for a raw one.
    cluster_size: int
    compression: CompressionType

    @property
    def path(self) -> str:
        """The file's name, as the chain has it."""
        return self.file.path

    def read_compressed(self, host_offset: int, stored_bytes: int) -> bytes:
        """Read and decompress a cluster.

        :raise ImageError: if the stream does not hold one.
        """
        data = self.file.pread(self.base + host_offset, stored_bytes)
        try:
            return decompress_cluster(data, self.cluster_size, self.compression)
        except ValueError as error:
            raise ImageError(f"compressed cluster at {host_offset:#x} is damaged: {error}", path=self.path) from error


class ClusterFiles:
    """Every file with clusters of a chain, numbered.

    :param chain: the chain.
    """

    def __init__(self, chain: Chain) -> None:
        self.files: list[SourceFile] = []
        #: For each layer the number of its (first) file.
        self.first_of_layer: list[int] = []
        #: For each file the layer it belongs to.
        self.layer: list[int] = []
        #: Layers that are indexes, and where the extents of each begin.
        self._linear: dict[int, NDArray[np.int64]] = {}
        for number, layer in enumerate(chain.layers):
            self.first_of_layer.append(len(self.files))
            found = _files_of(layer)
            if isinstance(layer.file, ExtentsFile):
                self._linear[number] = np.array(layer.file.starts, dtype=np.int64)
            self.files += found
            self.layer += [number] * len(found)
        self._first = np.array(self.first_of_layer, dtype=np.int32)

    def place(
        self, layer: int, host_offset: NDArray[np.int64], length: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
        """Tell where data of an index's linear space lie.

        :param layer: the index, by its number in the chain.
        :param host_offset: of each piece, in bytes of the linear space; int64.
        :param length: of each piece, in bytes; int64, of the same shape.
        :return: for each piece the number of the given one it is a part of (ascending), its file, its host offset
            there and its length: a piece that goes over the end of an extent becomes several.
        """
        starts = self._linear[layer]
        low = np.searchsorted(starts, host_offset, side="right") - 1
        high = np.searchsorted(starts, host_offset + length - 1, side="right") - 1
        times = high - low + 1
        part = np.repeat(np.arange(len(host_offset)), times)
        extent = np.repeat(low - np.cumsum(times) + times, times) + np.arange(len(part))
        ends = np.append(starts[1:], np.iinfo(np.int64).max)[extent]
        begin = np.maximum(host_offset[part], starts[extent])
        end = np.minimum(host_offset[part] + length[part], ends)
        return part, (self._first[layer] + extent).astype(np.int32), begin - starts[extent], end - begin

    @property
    def linear_layers(self) -> list[int]:
        """Layers that are indexes."""
        return list(self._linear)

    def of_layers(self, layer: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the (first) file of each layer, -1 for none."""
        found: NDArray[np.int32] = np.where(layer >= 0, self._first[np.maximum(layer, 0)], np.int32(-1))
        return found


def files_of(chain: Chain, sources: ClusterFiles) -> dict[str, Path]:
    """Return every file of a chain by the name that the chain has for it."""
    names = [*(layer.file.path for layer in chain.layers), *(source.path for source in sources.files)]
    return {name: Path(name) for name in names}


def _files_of(layer: Layer) -> list[SourceFile]:
    if layer.image is None:
        return [SourceFile(layer.file, 0, layer.file.size, 0, CompressionType.ZLIB)]
    header = layer.image.header
    if not isinstance(layer.file, ExtentsFile):
        return [SourceFile(layer.data_file, 0, layer.data_file.size, header.cluster_size, header.compression_type)]
    return [
        SourceFile(layer.file.file(i), extent.offset, extent.length, header.cluster_size, header.compression_type)
        for i, extent in enumerate(layer.file.extents)
    ]
