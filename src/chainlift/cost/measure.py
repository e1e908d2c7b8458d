"""What requests take of a QEMU's CPU time: the process's own clock; opening, closing and the first requests left out.

CPU time is what a busy host disturbs least. But it is half as long again while the core's other thread works, which may
be another machine's. So the processor's pace is looked at during each run, and what runs took is brought to the pace of
quiet moments. The first requests load the tables of each layer and touch memory for the first time, which of clusters
of 2 MiB takes 1.2 ms a layer: what a few requests take is measured by itself and taken off of what many take.
"""

from __future__ import annotations

import json
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from chainlift.chain import open_chain
from chainlift.errors import QemuCrashed, QemuError
from chainlift.host.cpu import cpu_times
from chainlift.host.pace import Watched
from chainlift.host.process import describe_end
from chainlift.qemu.bench import reading
from chainlift.qemu.memory import read_resident_set

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from chainlift.cost.shape import Floats
    from chainlift.cost.specimens import Cell
    from chainlift.host.pace import Pace
    from chainlift.qemu.binary import Qemu

_Key = TypeVar("_Key")

_WORK = {"read": (), "write": ("-w",), "flush": ("-w", "--flush-interval=1")}
#: Where this process is not let run, QEMU is done before it can be held: then again with more requests.
_TRIES = 6
#: CPU seconds that the many requests of a run should take, and the few that load tables: long enough to be held after.
_BUDGET_S, _FIRST_S = 0.05, 0.012
_LEAST_REQUESTS, _MOST_REQUESTS = 32, 30_000
_LEAST_FIRST, _MOST_FIRST = 8, 6_000
#: The many are so many times as many at least, lest the noise of the few is theirs.
_MANY = 4
#: What the few take is a small part: it need not be measured each time, and once where opening takes so long.
_ROUNDS_OF_FEW = 2
_LONG_OPENING_S = 1.0
#: Of all runs' slowdowns so large a part is less than that of quiet moments.
_QUIET_PART = 0.1
#: CPU time grows by this power of the slowdown at most: more is noise.
_MOST_POWER = 2.0


@dataclass(frozen=True)
class Span:
    """A part of a run."""

    cpu_s: float
    #: How many times as long as at its fastest the processor took for other work meanwhile; None: nobody looked.
    slowdown: float | None = None


@dataclass(frozen=True)
class Taken:
    """What one run of ``qemu-img bench`` took."""

    #: How many there were; what all took, and opening the image.
    requests: int
    work: Span
    opening: Span
    #: Resident memory at the end, programs and libraries included.
    resident_bytes: int


@dataclass(frozen=True)
class Pacing:
    """What a slower processor makes of spans: their CPU time grows by a power of how much slower it is."""

    power: float = 0.0
    #: The slowdown of quiet moments.
    quiet: float = 1.0

    def cpu_s(self, span: Span) -> float:
        """Return what a span would have taken in a quiet moment."""
        return span.cpu_s if span.slowdown is None else span.cpu_s * float((self.quiet / span.slowdown) ** self.power)

    def typical(self, spans: Sequence[Span], values_s: Sequence[float]) -> float:
        """Return the middle one of values that were brought to one pace, and the second least of those that were not.

        Nobody looks at the pace where threads wake each other. The least is then of a run in which they happened to be
        awake: 13 µs a read, where others take 27 to 55. Of two values nobody can tell, and the least counts.
        """
        is_paced = self.power > 0 and all(span.slowdown for span in spans)
        return median(values_s) if is_paced else sorted(values_s)[min(1, (len(values_s) - 1) // 2)]

    @classmethod
    def of(cls, repeats: Iterable[Sequence[Span]]) -> Pacing:
        """Find the power that makes repeats of the same work most alike, in logarithms and least squares.

        :param repeats: spans, those of the same work together.
        """
        slow, off = [np.empty(0)], [np.empty((2, 0))]
        for spans in repeats:
            pairs = [(np.log(span.slowdown), np.log(span.cpu_s)) for span in spans if span.slowdown]
            if pairs:
                here: Floats = np.array(pairs).T
                slow.append(here[0])
                off.append(here - here.mean(axis=1, keepdims=True))
        if len(slow) == 1:
            return cls()
        x, y = np.hstack(off)
        quiet = float(np.exp(np.quantile(np.hstack(slow), _QUIET_PART)))
        return cls(float(np.clip((x @ y) / max(float(x @ x), 1e-12), 0.0, _MOST_POWER)), quiet)


@dataclass(frozen=True)
class Runs:
    """The runs of a cell: those of few requests, and those of many."""

    few: list[Taken] = field(default_factory=list)
    many: list[Taken] = field(default_factory=list)

    def add(self, qemu: Qemu, image: Path, cell: Cell, guess_s: float, pace: Pace | None = None) -> None:
        """Measure once more.

        :param qemu: that is measured.
        :param image: where the cell's image is.
        :param cell: what is done to it.
        :param guess_s: CPU seconds of a request, roughly; from the second time on it is known.
        :param pace: watches the processor; None: whatever it was, the second least counts.
        :raise QemuError: if QEMU fails.
        """
        each = max(1e-7, self.request_cpu_s() if self.many else guess_s)
        if len(self.few) < (1 if self.open_cpu_s() > _LONG_OPENING_S else _ROUNDS_OF_FEW):
            few = int(min(_MOST_FIRST, max(_LEAST_FIRST, _FIRST_S / each)))
            self.few.append(measure(qemu, image, cell, few, pace))
        budget_s = max(_BUDGET_S, *(run.work.cpu_s for run in self.few))
        many = int(min(_MOST_REQUESTS, max(_LEAST_REQUESTS, budget_s / each)))
        self.many.append(measure(qemu, image, cell, max([many, *(_MANY * run.requests for run in self.few)]), pace))

    def request_cpu_s(self, pacing: Pacing | None = None) -> float:
        """Return the CPU seconds of a request, once all is there that the first few load.

        :param pacing: what slower moments make of the work; without it all counts as it is.
        """
        pacing = pacing or Pacing()
        many = [(pacing.cpu_s(run.work), run.requests) for run in self.many]
        most = min(cpu_s / requests for cpu_s, requests in many)
        # The few that were disturbed least: what they take more is taken off of all others.
        few = ((pacing.cpu_s(run.work), run.requests) for run in self.few)
        first_s, first = min(few, key=lambda run: run[0] - run[1] * most)
        each = [(cpu_s - first_s) / (requests - first) for cpu_s, requests in many]
        return max(1e-9, pacing.typical([run.work for run in self.many], each))

    def open_cpu_s(self, pacing: Pacing | None = None) -> float:
        """Return the CPU seconds of opening; nothing of what cannot be measured.

        :param pacing: what slower moments make of opening; without it all counts as it is.
        """
        pacing, spans = pacing or Pacing(), self.openings
        return pacing.typical(spans, [pacing.cpu_s(span) for span in spans]) if spans else 1e-9

    @property
    def openings(self) -> list[Span]:
        """Opening of the image, each time."""
        return [run.opening for run in (*self.few, *self.many)]

    @property
    def work_each(self) -> list[Span]:
        """A request of each run of many, what the first few load among it."""
        return [Span(run.work.cpu_s / run.requests, run.work.slowdown) for run in self.many]

    @property
    def resident_bytes(self) -> int:
        """Resident memory at the end."""
        return int(median(run.resident_bytes for run in self.many))


@dataclass(frozen=True)
class Settled:
    """What a cell's runs say together."""

    request_cpu_s: float
    open_cpu_s: float
    resident_bytes: int


def settle(runs: Mapping[_Key, Runs]) -> dict[_Key, Settled]:
    """Bring what was measured to the pace of quiet moments, which all runs together tell.

    :param runs: of each cell; one that was never measured is left out.
    """
    pacing = Pacing.of(taken.work_each for taken in runs.values())
    opening = Pacing.of(taken.openings for taken in runs.values())
    return {
        key: Settled(taken.request_cpu_s(pacing), taken.open_cpu_s(opening), taken.resident_bytes)
        for key, taken in runs.items()
        if taken.many
    }


def measure(qemu: Qemu, image: Path, cell: Cell, requests: int, pace: Pace | None = None) -> Taken:
    """Make one request after the other and see what they took.

    :param qemu: that makes them.
    :param image: where the cell's image is.
    :param cell: what they are.
    :param requests: how many.
    :param pace: watches the processor meanwhile.
    :raise QemuCrashed: if QEMU dies of it.
    :raise QemuError: if the image does not open.
    """
    for tried in range(_TRIES):
        try:
            if (taken := _measure(qemu, image, cell, requests, pace)) is not None:
                return taken
        except QemuCrashed:
            if tried:  # 10.0 was seen to crash once in some thousand runs
                raise
        requests *= 2
    raise QemuError("qemu-img bench was done each time before it could be held", path=image, hint="try again")


def _measure(qemu: Qemu, image: Path, cell: Cell, requests: int, pace: Pace | None) -> Taken | None:
    """Measure once; None where the requests were so few and fast that they were done before QEMU could be held."""
    name: Path | str = image if cell.l2_cache_bytes is None else with_l2_caches(image, cell.l2_cache_bytes)
    # A flush costs what the layers above the storage make of it: the storage's own part is left out.
    cache = "unsafe" if cell.work == "flush" else "writeback"
    with ExitStack() as stack:
        with _watching(pace) as opening:
            work = stack.enter_context(
                reading(
                    qemu,
                    name,
                    (cell.size, cell.step),
                    requests=requests,
                    aio=cell.aio,
                    cache=cache,
                    options=_WORK[cell.work],
                )
            )
        pid = work.process.pid
        opened = sum(cpu_times(pid))
        with _watching(pace) as working:
            work.go()
            is_held = work.until_done()
        if not is_held:
            finished = work.process.wait()
            end = describe_end(finished.returncode)
            if finished.returncode < 0:
                raise QemuCrashed(f"qemu-img ended by {end}", returncode=finished.returncode, path=image)
            if finished.returncode == 0:
                return None
            raise QemuError(f"qemu-img bench failed ({end}): {finished.stderr.strip()}", path=image)
        taken = sum(cpu_times(pid)) - opened
        resident = read_resident_set(pid)
        work.process.kill()  # closing 500 layers takes some releases seconds
    own_bytes = 0 if resident is None else resident.own_bytes
    return Taken(requests, Span(taken, working.slowdown), Span(opened, opening.slowdown), own_bytes)


def _watching(pace: Pace | None) -> AbstractContextManager[Watched]:
    return nullcontext(Watched()) if pace is None else pace.watching()


def with_l2_caches(image: Path, cache_bytes: int) -> str:
    """Return a name by which QEMU opens a chain with L2 caches of that many bytes: options nest, a layer in the other.

    :raise ImageError: if the chain cannot be opened.
    """
    with open_chain(image) as chain:
        nested: dict[str, object] | None = None
        for layer in reversed(chain.layers):
            file = {"driver": "file", "filename": str(Path(layer.path).absolute())}
            nested = {"driver": layer.format, "file": file, **({"backing": nested} if nested is not None else {})}
            if layer.image is not None:
                nested["l2-cache-size"] = cache_bytes
    return f"json:{json.dumps(nested)}"
