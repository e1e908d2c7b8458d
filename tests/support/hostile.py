"""Images that harm whoever looks at them without care."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from chainlift.qcow2.layout import QCOW_MAGIC

if TYPE_CHECKING:
    from pathlib import Path

_CLUSTER_BITS = 21


def endless_image(path: Path, tables: int = 1 << 17) -> Path:
    """Write an image of 3 MiB on disk with so many L2 tables of 2 MiB, all in a hole: 256 GiB are there to be read."""
    cluster = 1 << _CLUSTER_BITS
    span = cluster // 8 * cluster
    header = struct.pack(
        ">IIQIIQIIQQIIQQQQII",
        QCOW_MAGIC, 3, 0, 0, _CLUSTER_BITS, tables * span, 0, tables, cluster, 3 * cluster, 1, 0, 0, 0, 0, 0, 4, 104,
    )  # fmt: skip
    with path.open("wb") as stream:
        stream.write(header)
        stream.seek(cluster)
        stream.write(b"".join(struct.pack(">Q", (4 + number) * cluster | 1 << 63) for number in range(tables)))
        stream.truncate((4 + tables) * cluster)
    return path
