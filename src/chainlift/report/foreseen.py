"""What the model of costs says of host reads, to stand beside what was measured.

It knows of the chain what a result directory does: how many clusters each layer has, not where they lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from chainlift.cost.expected import expected_shape
from chainlift.cost.model import SIZES, predict
from chainlift.cost.store import nearest_shipped, read_parameters
from chainlift.results.store import PARAMETERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chainlift.cost.figures import Figure
    from chainlift.cost.parameters import Aio, Parameters
    from chainlift.report.data import Results, Run, Series
    from chainlift.report.measures import Measure
    from chainlift.results.model import ChainShape, QemuFacts

#: Host reads as the model knows them, one after the other and from the page cache: variant -> name of the figure.
_NAMES = {f"{size}-strided-d1": f"read_{size}_cpu_s" for size in SIZES}
_NAMES |= {f"{size}-seq-d1": f"sequential_{size}_cpu_s" for size in SIZES}
_CACHED_MODES = ("writeback", "writethrough", "unsafe")
#: Lengths on the way from the shortest to the longest that was measured.
_POINTS = 24
_CHECK = ("bdrv_is_inserted", "bdrv_co_is_inserted")


@dataclass(frozen=True)
class Foreseen:
    """A foreseen measure by chain length."""

    points: dict[int, Figure]
    #: Whose parameters these are, in words.
    origin: str


def foresee(results: Results, series: Series, measure: Measure) -> Foreseen | None:
    """Return what the model says of the CPU time of a host read of a plain chain; None where it does not know it.

    The parameters are those that the study has kept; without any, those that are shipped for the nearest release, as
    they are.

    :param series: whose line it is: of one run, QEMU and lift.
    :param measure: the CPU time of one kind of host read.
    """
    run = next(run for run in results.runs if run.label == series.run)
    name = _NAMES.get(measure.variant)
    if name is None or not series.is_plain or series.setting:
        return None
    if run.environment is None or run.chain is None or run.environment.cache_mode not in _CACHED_MODES:
        return None
    lengths = [n for n in results.medians(series, measure) if 0 < n <= run.chain.length]
    facts = next((q for q in run.environment.qemus if q.label == series.qemu), None)
    if facts is None or (facts.without and facts.without not in _CHECK):
        return None
    aio = facts.host_aio or run.environment.aio
    if not lengths or aio not in ("threads", "io_uring"):
        return None
    parameters, origin = _parameters(run, facts)
    lift = "no-check" if facts.without else "none"
    points = {}
    for length in _between(min(lengths), max(lengths)):
        shape = expected_shape(run.chain.virtual_size_bytes, run.chain.cluster_size_bytes, _clusters(run.chain, length))
        figure = getattr(predict(shape, parameters, cast("Any", lift), aio=cast("Aio", aio)), name)
        if figure is not None:
            points[length] = figure
    return Foreseen(points, origin) if points else None


def _parameters(run: Run, facts: QemuFacts) -> tuple[Parameters, str]:
    kept = read_parameters(run.path / PARAMETERS).get(facts.copy_of or facts.label)
    if kept is not None:
        return kept, kept.origin
    shipped = nearest_shipped(facts.version)
    origin = f"shipped for QEMU {shipped.qemu.partition(' ')[0]}, measured on another machine"
    return shipped.scaled(1.0, origin), origin  # less sure than on their own


def _clusters(chain: ChainShape, length: int) -> Sequence[int]:
    counts = chain.layer_clusters or [size // chain.cluster_size_bytes for size in chain.layer_bytes]
    return counts[: length + 1]


def _between(first: int, last: int) -> list[int]:
    return sorted({*np.geomspace(first, last, _POINTS).round().astype(int).tolist()})
