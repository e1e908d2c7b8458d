"""Fitting the parameters on this host: specimens are read by the QEMU itself, and the model is solved for its steps.

But for ``near_nodes`` the model is linear in its parameters. So for each number of near nodes the best others are the
solution of a linear problem with no negative unknown, of relative residuals; and the best number is looked for.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from chainlift.chain import open_chain
from chainlift.chain.summarize import summarize
from chainlift.cost import model, specimens
from chainlift.cost.measure import Runs, settle
from chainlift.cost.parameters import Parameters, Spread
from chainlift.cost.shape import Shape, shape_of
from chainlift.cost.store import nearest_shipped
from chainlift.errors import QemuError
from chainlift.host.pace import Pace
from chainlift.host.scratch import ScratchDirectory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from chainlift.cost.measure import Settled
    from chainlift.cost.shape import Floats
    from chainlift.cost.specimens import Cell
    from chainlift.qemu.binary import Qemu

#: How often each cell is measured: all within a minute.
ROUNDS = 3
#: CPU seconds that opening a cell's image may take in all rounds; in how many it is measured at least, or all but one.
_OPENING_S = 5.0
_LEAST_ROUNDS = 3
#: What the linear problem is solved for.
_LINEAR = (
    "request_s", "bottom_half_s", "write_s", "flush_s", "io_s", "thread_s", "copy_byte_s", "zero_byte_s",
    "start_byte_s", "level_s", "lookup_s", "task_s", "task_depth_s", "visit_s", "far_visit_s", "table_s", "inflate_s",
    "zlib_byte_s", "zstd_byte_s",
)  # fmt: skip
_OPEN = (
    "open_s", "open_layer_s", "open_pair_s", "open_triple_s", "open_byte_s", "open_extent_s", "open_extent_pair_s",
)  # fmt: skip
_MEMORY = ("node_bytes", "node_clusters", "extent_bytes")
#: A visit that the near cache does not serve takes so many times as long at most: a processor's next cache does.
_MOST_FAR = 8.0
#: A residual that is larger than this is a disturbance; how often the problem is solved to find those.
_DISTURBED, _REWEIGHTED = 0.1, 4
_NEAR_NODES = np.geomspace(150, 1200, 25)
_LEAST_HELD_BYTES = float(4 << 20)
#: No figure is said to be surer than nine of ten were of chains that no calibration has seen (bench/cost).
LEAST_SPREAD: dict[str, float] = {"read": 0.5, "write": 0.5, "memory": 0.15, "open": 0.3}
#: A calibration is a quiet moment's; other moments differ more than its own residuals.
_MARGIN = 1.5


@dataclass(frozen=True)
class Measured:
    """A cell and what it took."""

    cell: Cell
    shape: Shape
    request_cpu_s: float
    open_cpu_s: float
    resident_bytes: int


def calibrate(qemu: Qemu, progress: Callable[[int, int, str], None] = lambda _done, _all, _name: None) -> Parameters:
    """Measure a QEMU on this host and fit its parameters.

    :param progress: told how many runs are done, of how many, and the name of the next.
    :raise QemuError: if one of its programs fails.
    """
    with ScratchDirectory() as directory:
        specimens.build(directory)
        shapes = shapes_of(directory, specimens.cells())
        return fit(qemu.version_text, beside(shapes, settle(run_cells(qemu, directory, shapes, progress))))


def beside(shapes: Mapping[Cell, Shape], settled: Mapping[Cell, Settled]) -> list[Measured]:
    """Put what was measured of cells beside their chains' shapes.

    :param shapes: of all cells.
    :param settled: of those that were measured.
    """
    return [Measured(cell, shapes[cell], *astuple(found)) for cell, found in settled.items()]


def run_cells(
    qemu: Qemu,
    directory: Path,
    cells: Mapping[Cell, Shape],
    progress: Callable[[int, int, str], None],
    rounds: int = ROUNDS,
) -> dict[Cell, Runs]:
    """Measure cells, in turn and again, so that what else the host does meets all of them.

    All are measured equally often, but images that take long to open in some of the rounds, from the first to the last.
    The pace of the processor is looked at where one thread does the work: two that wake each other must not be kept on
    one processor, so of theirs the least counts.

    :param qemu: that is measured.
    :param directory: what their images are below.
    :param cells: what is measured, and the shapes of their chains.
    :param progress: told how many runs are done, of how many, and the name of the next.
    :param rounds: how often.
    """
    pace = Pace()
    guess = nearest_shipped(qemu.version_text)
    runs: dict[Cell, Runs] = {cell: Runs() for cell in cells}
    done = 0
    for turn in range(rounds):
        for cell, shape in cells.items():
            progress(done, rounds * len(cells), cell.name)
            done += 1
            if turn and not _is_due(turn, rounds, runs[cell].open_cpu_s()):
                continue
            each = foreseen(cell, shape, guess)
            try:
                runs[cell].add(qemu, directory / cell.image, cell, each, None if cell.wakes_threads else pace)
            except QemuError:
                if not cell.is_optional:
                    raise
    return runs


def _is_due(turn: int, rounds: int, open_s: float) -> bool:
    """Whether a cell is measured in a round behind the first, if its image takes so long to open."""
    times = min(rounds, max(min(_LEAST_ROUNDS, rounds - 1), int(_OPENING_S / open_s))) - 1
    return turn * times // (rounds - 1) > (turn - 1) * times // (rounds - 1)


def shapes_of(directory: Path, cells: Iterable[Cell]) -> dict[Cell, Shape]:
    """Return the shapes of cells' chains.

    :param directory: what their images are below.
    """
    return {cell: _shape(directory / cell.image, cell) for cell in cells}


def _shape(path: Path, cell: Cell) -> Shape:
    with open_chain(path) as chain:
        # Of small caches the model is told what the specimen does to them: every lookup misses.
        return shape_of(summarize(chain), l2_cache_bytes=None if cell.l2_cache_bytes is None else 0)


def foreseen(cell: Cell, shape: Shape, parameters: Parameters) -> float:
    """Return what the model says of a cell, in CPU seconds a request.

    :param cell: what is measured.
    :param shape: of its chain.
    :param parameters: of the QEMU and the host.
    """
    if cell.work == "read":
        return model.read_cpu_s(shape, parameters, cell.size, aio=cell.aio)
    write = model.write_cpu_s(shape, parameters, aio=cell.aio)
    return write + (model.flush_cpu_s(shape, parameters) if cell.work == "flush" else 0.0)


def fit(version_text: str, measured: Sequence[Measured]) -> Parameters:
    """Fit the parameters to what was measured; what a fit is not for is taken from the shipped ones."""
    shipped = nearest_shipped(version_text)
    taken = np.array([m.request_cpu_s for m in measured])
    best, rest = shipped, np.inf
    for near in _NEAR_NODES.tolist():
        base = _with(shipped, {**dict.fromkeys(_LINEAR, 0.0), "table_byte_s": 0.0, "near_nodes": near})
        unit = [_with(base, {name: 1.0}) for name in _LINEAR]
        columns = np.array([[foreseen(m.cell, m.shape, one) for one in unit] for m in measured])
        found, left = _solve(columns / taken[:, None])
        if left < rest:
            best, rest = _with(base, dict(zip(_LINEAR, found.tolist(), strict=True))), left
    if not any(m.shape.is_zstd.any() for m in measured):
        best = replace(best, zstd_byte_s=shipped.zstd_byte_s)
    if not any(m.cell.l2_cache_bytes is not None for m in measured):
        best = replace(best, table_s=shipped.table_s)
    off = [(m.cell, abs(np.log(foreseen(m.cell, m.shape, best) / m.request_cpu_s))) for m in measured]
    opened, open_off = _fit_open(measured)
    memory, memory_off = _fit_memory(measured)
    spread = Spread(
        read=_spread("read", [value for cell, value in off if cell.work == "read"]),
        write=_spread("write", [value for cell, value in off if cell.work != "read"]),
        memory=_spread("memory", memory_off),
        open=_spread("open", open_off),
    )
    origin = f"calibrated on this host with QEMU {version_text}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return replace(_with(best, {**opened, **memory}), spread=spread, qemu=version_text, origin=origin)


def _solve(columns: Floats) -> tuple[Floats, float]:
    """Return the steps that make each row's sum nearest to 1, and what is left over."""
    found, left = _robust(columns)
    near, far = _LINEAR.index("visit_s"), _LINEAR.index("far_visit_s")
    if found[far] > _MOST_FAR * found[near]:  # one cell alone has said so
        tied = columns.copy()
        tied[:, near] += _MOST_FAR * tied[:, far]
        tied[:, far] = 0
        found, left = _robust(tied)
        found[far] = _MOST_FAR * found[near]
    return found, left


def _robust(columns: Floats) -> tuple[Floats, float]:
    """Solve by squares of small residuals and sizes of large ones (Huber): a disturbed cell does not bend the rest."""
    weight = np.ones(len(columns))
    for _ in range(_REWEIGHTED):
        root = np.sqrt(weight)
        found = non_negative(columns * root[:, None], root)
        off = np.abs(columns @ found - 1)
        weight = np.minimum(1, _DISTURBED / np.maximum(off, 1e-12))
    return found, float(np.where(off < _DISTURBED, off**2, 2 * _DISTURBED * off - _DISTURBED**2).sum())


def _with(parameters: Parameters, values: Mapping[str, Any]) -> Parameters:
    return replace(parameters, **values)


def _fit_open(measured: Sequence[Measured]) -> tuple[dict[str, float], list[float]]:
    least: dict[tuple[float, ...], float] = {}
    for m in measured:
        if m.cell.l2_cache_bytes is None:  # options that nest make opening another thing
            n = float(m.shape.length)
            extents = float(m.shape.extents.sum())
            row = (1.0, n, n**2, n**3, float(m.shape.cluster_bytes.sum()), extents, extents**2)
            least[row] = min(m.open_cpu_s, least.get(row, np.inf))
    columns, taken = np.array(list(least)), np.array(list(least.values()))
    found = non_negative(columns / taken[:, None], np.ones(len(taken)))
    return dict(zip(_OPEN, found.tolist(), strict=True)), np.abs(np.log(columns @ found / taken)).tolist()


def _fit_memory(measured: Sequence[Measured]) -> tuple[dict[str, float], list[float]]:
    """Fit what a layer takes, over one image that is read the same way; return it, and how far off each chain is."""
    read = [m for m in measured if m.cell.work == "read" and m.cell.aio == "io_uring" and m.cell.l2_cache_bytes is None]
    one = {m.cell.size: m for m in read if not m.shape.length and m.shape.data_bytes.all()}
    pairs = [(m, one[m.cell.size]) for m in read if m.shape.length and m.cell.size in one]
    columns = np.array([
        [m.shape.length, float(m.shape.cluster_bytes.sum() - o.shape.cluster_bytes.sum()), float(m.shape.extents.sum())]
        for m, o in pairs
    ])  # fmt: skip
    tables = np.array([_tables_bytes(m.shape) - _tables_bytes(o.shape) for m, o in pairs])
    held = np.array([float(m.resident_bytes - o.resident_bytes) for m, o in pairs])
    # A short chain holds little more than one image does, and noise is a part of that.
    least = np.maximum(held, _LEAST_HELD_BYTES)
    found = non_negative(columns / least[:, None], (held - tables) / least)
    off = np.abs(np.log(np.maximum(columns @ found + tables, 1.0) / np.maximum(held, 1.0)))
    return dict(zip(_MEMORY, found.tolist(), strict=True)), off.tolist()


def _tables_bytes(shape: Shape) -> float:
    return float(np.minimum(shape.table_bytes, shape.cache_bytes).sum())


def _spread(name: str, logs: Sequence[float]) -> float:
    """Return within what nine of ten are, with a margin."""
    return max(LEAST_SPREAD[name], _MARGIN * (float(np.exp(np.quantile(logs, 0.9))) - 1)) if len(logs) else 1.0


def non_negative(columns: Floats, target: Floats) -> Floats:
    """Return the ``x >= 0`` that makes ``columns @ x`` nearest to ``target`` in least squares (Lawson and Hanson)."""
    scale = np.maximum(np.sqrt((columns**2).sum(axis=0)), 1e-300)
    a = columns / scale
    x, free = np.zeros(a.shape[1]), np.zeros(a.shape[1], dtype=bool)
    for _ in range(10 * a.shape[1]):
        pull = a.T @ (target - a @ x)
        if free.all() or pull[~free].max() <= 1e-10:
            break
        free[np.flatnonzero(~free)[pull[~free].argmax()]] = True
        while True:
            tried = np.zeros_like(x)
            tried[free] = np.linalg.lstsq(a[:, free], target, rcond=None)[0]
            if (tried[free] > 0).all():
                x = tried
                break
            low = free & (tried <= 0)
            x = x + (x[low] / np.maximum(x[low] - tried[low], 1e-300)).min() * (tried - x)
            free &= x > 1e-14
    return np.asarray(x / scale)
