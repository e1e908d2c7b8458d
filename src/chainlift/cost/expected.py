"""A chain's shape where no map is at hand, only how many clusters each layer has: as it would be on average."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from chainlift.cost.shape import plain_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chainlift.cost.shape import Shape


def expected_shape(virtual_size_bytes: int, cluster_bytes: int, layer_clusters: Sequence[int]) -> Shape:
    """Return the shape that a chain has on average whose layers write anywhere over what the base has.

    :param virtual_size_bytes: of the disk.
    :param cluster_bytes: of each layer.
    :param layer_clusters: that each layer has, the base's first.
    """
    top_first = np.array(layer_clusters[::-1], float)
    total = max(1.0, virtual_size_bytes / cluster_bytes)
    # Where the base has little, layers lie anywhere.
    region = min(total, max(1.0, top_first.max()))
    share = np.minimum(1.0, top_first / region)
    # The part of the region whose search comes to each layer, and the part that is found there.
    entered = np.cumprod(np.concatenate(([1.0], 1 - share[:-1])))
    found = entered * share
    rest = (total - region) * cluster_bytes
    # Of clusters that are there or not by chance, so many stand behind one that is not.
    behind = 1.0 if rest else 0.0
    return plain_shape(
        virtual_size_bytes,
        cluster_bytes,
        entered_bytes=entered * region * cluster_bytes + rest,
        entered_runs=np.maximum(1.0, region * entered * (1 - entered) + behind),
        data_bytes=found * region * cluster_bytes,
        data_runs=np.where(found > 0, np.maximum(1.0, region * found * (1 - found)), 0.0),
        # Layers that write anywhere soon have a table for each place that the base has one for.
        tables=np.minimum(np.ceil(region * 8 / cluster_bytes), np.ceil(top_first)),
    )
