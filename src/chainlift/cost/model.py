"""From a chain's shape to what it costs: the mechanism of docs/upstream.md, step by step."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from chainlift.cost.figures import Cost, Figure

if TYPE_CHECKING:
    from chainlift.cost.parameters import Aio, Parameters
    from chainlift.cost.shape import Floats, Lift, Shape

#: The names of figures, and the bytes of a request.
SIZES = {"4k": 4 << 10, "64k": 64 << 10, "4m": 4 << 20}
#: How many times as much copying takes more where the page cache has small pages (a guest's random reads leave those)
#: and not large folios (writing and reading ahead do): Linux 6.18, ext4, 4 MiB in 140 to 180 and 430 to 800 µs.
_SMALL_PAGES = 3.5
#: The near cache is shared, and where nodes come to lie in it is chance: it may keep so many times fewer or more.
_NEAR_SPREAD = 2.0
#: A figure that this changes by more is said to hang on it.
_HANGS = 1.2
#: So large a part of a read in visits that the near cache does not serve makes it hang on where the nodes lie.
_MOSTLY_FAR = 0.4
#: A copy that is longer goes faster from there on.
_START_BYTES = 64 << 10
#: How far a figure may be off where it hangs on the data that were compressed.
_COMPRESSED_SPREAD = 2.0


def predict(
    shape: Shape,
    parameters: Parameters,
    lift: Lift = "none",
    *,
    extents: int | None = None,
    layers: int | None = None,
    aio: Aio = "threads",
) -> Cost:
    """Foresee what a chain costs, as it is or as a lift would leave it.

    :param parameters: of the QEMU and the host.
    :param extents: of an index: the files that it points into; None: all that have something to be seen.
    :param layers: what ``prune`` leaves over the base; None: 10.
    :param aio: how QEMU reads files.
    """
    lifted = shape.lifted(lift, extents=extents, layers=layers)
    if lift == "no-check":
        parameters = replace(parameters, visit_s=0.0, far_visit_s=0.0)
    unknown = []
    spread = parameters.spread
    longest = parameters.longest_layers
    dies = longest is not None and lifted.length > longest
    if dies:
        unknown.append(f"this QEMU dies of a read through more than {longest} layers")
    if shape.is_encrypted:
        unknown.append("what it takes to decrypt is not in the model")
    read_spread = spread.read
    if lifted.compressed_bytes.any():
        unknown.append("how long a compressed cluster takes depends on its data")
        share = float(lifted.compressed_bytes.sum()) / max(1, lifted.virtual_size_bytes)
        read_spread += _COMPRESSED_SPREAD * min(1.0, 4 * share)
    near = [_with_near(parameters, times) for times in (_NEAR_SPREAD, 1 / _NEAR_SPREAD)]
    all_near = replace(parameters, far_visit_s=0.0)
    read_4k, half_near, unlost = (read_cpu_s(lifted, p, SIZES["4k"], aio=aio) for p in (parameters, near[1], all_near))
    if half_near > _HANGS * read_4k or unlost < (1 - _MOSTLY_FAR) * read_4k:
        unknown.append("how much of the processor's near cache others leave to walks over so many nodes")
    figures: dict[str, Figure | None] = {}
    hidden = dies or shape.is_encrypted
    for name, size in SIZES.items():
        for figure, in_sequence, more in (
            (f"read_{name}_cpu_s", False, 0.0),
            (f"sequential_{name}_cpu_s", True, 0.0),
            (f"read_{name}_latency_s", False, 0.5),
        ):
            value, most_near, least_near = (
                read_cpu_s(lifted, p, size, aio=aio, in_sequence=in_sequence) for p in (parameters, *near)
            )
            small_pages = _small_pages_s(lifted, parameters, size)
            found = _read_figure(value, most_near, least_near, small_pages, read_spread + more)
            figures[figure] = None if hidden else found
    write, flush = write_cpu_s(lifted, parameters, aio=aio), flush_cpu_s(lifted, parameters)
    descriptors = float(lifted.files.sum() + parameters.own_files)
    return Cost(
        **figures,
        write_4k_cpu_s=None if shape.is_encrypted else Figure.within(write, spread.write),
        flush_cpu_s=Figure.within(flush, spread.write),
        memory_bytes=Figure.within(memory_bytes(lifted, parameters), spread.memory),
        open_cpu_s=Figure.within(open_cpu_s(lifted, parameters), spread.open),
        file_descriptors=Figure(descriptors, descriptors - 2, descriptors + 2),
        longest_layers=None if longest is None else Figure(longest, longest - 8, longest + 8),
        unknown=tuple(unknown),
    )


def _with_near(parameters: Parameters, times: float) -> Parameters:
    return replace(parameters, near_nodes=parameters.near_nodes * times)


def _small_pages_s(shape: Shape, parameters: Parameters, size: int) -> float:
    """Return what a read takes more where the page cache has small pages; nobody knows beforehand what it has."""
    copied = size * float(shape.data_bytes.sum()) / max(1, shape.virtual_size_bytes)
    return _SMALL_PAGES * copied * parameters.copy_byte_s


def _read_figure(value: float, more_near: float, fewer_near: float, small_pages_s: float, spread: float) -> Figure:
    """Return a read's figure: within the spread, and as far as the near cache and the page cache may make it.

    :param value: what it takes.
    :param more_near: the same where the near cache keeps more nodes.
    :param fewer_near: where it keeps fewer.
    :param small_pages_s: what it takes more where the page cache has small pages.
    :param spread: how far the model may be off.
    """
    found = Figure.within(value, spread)
    return Figure(value, min(found.low, more_near), max(found.high, (value + small_pages_s) * (1 + spread), fewer_near))


def walk_s(nodes: Floats | float, parameters: Parameters) -> Floats:
    """Return what a walk over so many nodes takes (``bdrv_(co_)is_inserted()``).

    The walks of a request go over the same nodes in the same order, again and again: those that the near cache does not
    keep come from further away.
    """
    count = np.asarray(nodes, float)
    far = np.maximum(0.0, count - parameters.near_nodes)
    return count * parameters.visit_s + far * parameters.far_visit_s


def pieces(total_bytes: Floats, runs: Floats, size: int, shape: Shape) -> Floats:
    """Return into how many pieces a read of ``size`` bytes falls, on average over the disk.

    A run of L bytes lies in L / size + 1 - g / size requests, where both begin at multiples of the granule g.

    :param total_bytes: of all runs.
    :param runs: how many there are.
    :param size: of a read, in bytes.
    :param shape: of the chain.
    """
    more = max(0.0, 1 - shape.granularity_bytes / size)
    return (total_bytes / size + runs * more) * size / max(1, shape.virtual_size_bytes)


def read_cpu_s(
    shape: Shape, parameters: Parameters, size: int, *, aio: Aio = "threads", in_sequence: bool = False
) -> float:
    """Return the CPU seconds of one read.

    :param shape: of the chain.
    :param parameters: of the QEMU and the host.
    :param size: of the read, in bytes.
    :param aio: how QEMU reads files.
    :param in_sequence: whether the reads follow each other on the disk.
    """
    size = min(size, max(512, shape.virtual_size_bytes))
    p, below = parameters, shape.nodes_below
    entered = pieces(shape.entered_bytes, shape.entered_runs, size, shape)
    entered[0] = 1.0
    data = pieces(shape.data_bytes, shape.data_runs, size, shape)
    compressed = _compressed_clusters(shape, size)
    answers = data + compressed
    visits = p.entry_walks * walk_s(below[:1], p) + (entered * walk_s(below, p)).sum()
    visits += (answers * _io_walks_s(shape, p)).sum()
    tasks = _tasks(entered, answers)
    from_each = size * shape.data_bytes / max(1, shape.virtual_size_bytes)
    copied, first = float(from_each.sum()), float(np.minimum(from_each, data * _START_BYTES).sum())
    decompressed = compressed * shape.cluster_bytes * np.where(shape.is_zstd, p.zstd_byte_s, p.zlib_byte_s)
    return float(
        p.request_s
        + max(0.0, 1 - answers.sum()) * p.bottom_half_s
        + visits.sum()
        + entered.sum() * p.level_s
        + (entered * _share_with_table(shape)).sum() * p.lookup_s
        + tasks * p.task_s
        + (np.maximum(0.0, entered - 1) * np.arange(len(entered))).sum() * p.task_depth_s
        + answers.sum() * (p.io_s + p.thread_s * (aio == "threads"))
        + copied * p.copy_byte_s
        + first * p.start_byte_s
        + (size - copied) * p.zero_byte_s
        + decompressed.sum()
        + compressed.sum() * p.inflate_s
        + _table_loads_s(shape, p, entered, size, in_sequence=in_sequence)
    )


def _tasks(entered: Floats, answers: Floats) -> float:
    """Return how many pieces are tasks of their own: all into which a layer cuts what comes to it.

    A piece that ends at a layer as it came, or falls through it as it came, is none (``qcow2_co_preadv_part()``). Most
    that are cut have data of the layer in their middle, and become three.

    :param entered: pieces that come to each layer.
    :param answers: pieces that end there.
    """
    more = np.maximum(0.0, answers + np.append(entered[1:], 0.0) - entered)
    return float((more + np.minimum(entered, more / 2)).sum())


def _io_walks_s(shape: Shape, p: Parameters) -> Floats:
    """Return the checks on the way from a layer to its file; in an index the vmdk node's, then the extent's."""
    plain = np.where(shape.extents > 0, walk_s(shape.io_nodes, p), 0.0)
    return plain + walk_s(1.0, p)


def _compressed_clusters(shape: Shape, size: int) -> Floats:
    """Return how many compressed clusters a read of ``size`` bytes touches at each layer."""
    cluster = np.maximum(shape.cluster_bytes, 512)
    share = shape.compressed_bytes / max(1, shape.virtual_size_bytes)
    return np.asarray(share * np.maximum(1.0, size / cluster))


def _share_with_table(shape: Shape) -> Floats:
    """Return for how much of the disk each layer has an L2 table."""
    return np.minimum(1.0, shape.tables * shape.table_span_bytes / max(1, shape.virtual_size_bytes))


def _table_loads_s(shape: Shape, p: Parameters, entered: Floats, size: int, *, in_sequence: bool) -> float:
    """Return what reading slices of L2 tables takes that the caches do not hold."""
    full = shape.table_bytes
    missed = np.maximum(0.0, 1 - shape.cache_bytes / np.maximum(full, 1))
    looked_up = entered * _share_with_table(shape)
    if in_sequence:
        looked_up = np.minimum(looked_up, size * full / shape.slice_bytes / max(1, shape.virtual_size_bytes))
        missed = np.where(missed > 0, 1.0, 0.0)
    return float((looked_up * missed * (p.table_s + shape.slice_bytes * p.table_byte_s)).sum())


def write_cpu_s(shape: Shape, parameters: Parameters, *, aio: Aio = "threads") -> float:
    """Return the CPU seconds of a write of 4 KiB over data that the active layer has.

    :param shape: of the chain.
    :param parameters: of the QEMU and the host.
    :param aio: how QEMU writes files.
    """
    p = parameters
    walks = (p.entry_walks + 1) * walk_s(shape.nodes_below[0], p) + _io_walks_s(shape, p)[0]
    io = p.io_s + p.thread_s * (aio == "threads") + 4096 * (p.copy_byte_s + p.start_byte_s)
    return float(p.request_s + p.level_s + p.lookup_s + p.write_s + walks + io)


def flush_cpu_s(shape: Shape, parameters: Parameters) -> float:
    """Return the CPU seconds of a flush with nothing to write back."""
    return float(parameters.flush_s + 2 * walk_s(shape.nodes_below[0], parameters))


def memory_bytes(shape: Shape, parameters: Parameters) -> float:
    """Return the memory that the chain takes once all of the disk was read."""
    caches = np.minimum(shape.table_bytes, shape.cache_bytes)
    nodes = len(shape.nodes) * parameters.node_bytes + shape.extents.sum() * parameters.extent_bytes
    return float(caches.sum() + parameters.node_clusters * shape.cluster_bytes.sum() + nodes)


def open_cpu_s(shape: Shape, parameters: Parameters) -> float:
    """Return the CPU seconds until the chain is open, in a process that is there."""
    p, count = parameters, shape.length
    powers = p.open_layer_s * count + p.open_pair_s * count**2 + p.open_triple_s * count**3
    extents = p.open_extent_s * shape.extents.sum() + p.open_extent_pair_s * (shape.extents**2).sum()
    return float(p.open_s + powers + extents + p.open_byte_s * shape.cluster_bytes.sum())
