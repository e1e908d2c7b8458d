"""Reading refcounts (specification, section "Host cluster management")."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from chainlift.errors import ImageError
from chainlift.qcow2 import layout
from chainlift.qcow2.tables import unpack_refcounts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from chainlift.qcow2.image import Image


def read_refcounts(image: Image, clusters: int) -> Iterator[NDArray[np.uint64]]:
    """Yield the refcounts of an image's first host clusters, a refcount block at a time.

    Clusters that no block describes are left out: their refcounts are zero.

    :param clusters: how many.
    :raise ImageError: if a block is not aligned, cut off or in the table twice.
    """
    header = image.header
    per_block = header.cluster_size * 8 >> header.refcount_order
    blocks = min(-(-clusters // per_block), header.refcount_table_clusters * header.cluster_size // 8)
    data = image.file.pread(header.refcount_table_offset, blocks * 8)
    if len(data) < blocks * 8:
        raise ImageError("the refcount table is cut off", path=image.path)
    # Most tables have one block or a few: Python is faster there than numpy.
    table = [word & layout.REFT_OFFSET_MASK for word in struct.unpack(f">{blocks}Q", data)]
    used = [(index, offset) for index, offset in enumerate(table) if offset]
    if len({offset for _, offset in used}) < len(used):
        # No writer does that, and a small file could stand for hours of reading.
        raise ImageError("the refcount table has a block twice", path=image.path)
    for index, offset in used:
        if offset % header.cluster_size or offset >= image.file.size:
            raise ImageError(f"refcount table entry {index}: there is no block at {offset:#x}", path=image.path)
        wanted = min(per_block, clusters - index * per_block)
        length = -(-(wanted << header.refcount_order) // 8)
        block = image.file.pread(offset, length).ljust(length, b"\0")
        yield unpack_refcounts(block, header.refcount_order)[:wanted]


def has_preallocated_metadata(image: Image) -> bool:
    """Tell whether far more clusters are in use than the file system has blocks for, as QEMU tells it.

    QEMU then asks the file system which data clusters are holes (``qcow2_detect_metadata_preallocation()`` in
    block/qcow2-refcount.c).
    """
    size = image.header.cluster_size
    real_clusters = image.file.allocated_bytes // size
    threshold = max(real_clusters * 10 // 9, real_clusters + 2)
    end_cluster = -(-image.file.size // size)
    if threshold > end_cluster:
        return False
    count = 0
    try:
        for refcounts in read_refcounts(image, end_cluster):
            count += int(np.count_nonzero(refcounts))
            if count >= threshold:
                return True
    except ImageError:  # it matters to the refcounts only; QEMU takes it for a no as well
        return False
    return False
