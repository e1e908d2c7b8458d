"""What requests take of a QEMU's CPU time: the process's own clock; opening, closing and the first requests left out.

CPU time is what a busy host disturbs least, and it errs upwards alone: of repeats the least counts. The first requests
load the tables of each layer and touch memory for the first time, which of clusters of 2 MiB takes 1.2 ms a layer: what
a few requests take is measured by itself and taken off of what many take.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from chainlift.chain import open_chain
from chainlift.errors import QemuCrashed, QemuError
from chainlift.host.cpu import cpu_times
from chainlift.host.process import describe_end
from chainlift.qemu.bench import reading
from chainlift.qemu.memory import read_resident_set

if TYPE_CHECKING:
    from chainlift.cost.specimens import Cell
    from chainlift.qemu.binary import Qemu

_WORK = {"read": (), "write": ("-w",), "flush": ("-w", "--flush-interval=1")}
#: Where this process is not let run, QEMU is done before it can be held: then again with more requests.
_TRIES = 6
#: CPU seconds that the many requests of a run should take, and the few that load tables: long enough to be held after.
_BUDGET_S, _FIRST_S = 0.05, 0.012
_LEAST_REQUESTS, _MOST_REQUESTS = 32, 30_000
_LEAST_FIRST, _MOST_FIRST = 8, 6_000
#: The many are so many times as many at least, lest the noise of the few is theirs.
_MANY = 4
#: What the few take is a small part: it need not be measured each time.
_ROUNDS_OF_FEW = 2


@dataclass(frozen=True)
class Taken:
    """What one run of ``qemu-img bench`` took."""

    #: How many there were; CPU seconds of all, and of opening the image.
    requests: int
    cpu_s: float
    open_cpu_s: float
    #: Resident memory at the end, programs and libraries included.
    resident_bytes: int


@dataclass(frozen=True)
class Runs:
    """The runs of a cell: those of few requests, and those of many."""

    few: list[Taken] = field(default_factory=list)
    many: list[Taken] = field(default_factory=list)

    def add(self, qemu: Qemu, image: Path, cell: Cell, guess_s: float) -> None:
        """Measure once more.

        :param image: where the cell's image is.
        :param guess_s: CPU seconds of a request, roughly; from the second time on it is known.
        :raise QemuError: if QEMU fails.
        """
        each = max(1e-7, self.request_cpu_s if self.many else guess_s)
        if len(self.few) < _ROUNDS_OF_FEW:
            self.few.append(measure(qemu, image, cell, int(min(_MOST_FIRST, max(_LEAST_FIRST, _FIRST_S / each)))))
        budget_s = max(_BUDGET_S, 2 * min(run.cpu_s for run in self.few))
        many = int(min(_MOST_REQUESTS, max(_LEAST_REQUESTS, budget_s / each)))
        self.many.append(measure(qemu, image, cell, max([many, *(_MANY * run.requests for run in self.few)])))

    @property
    def request_cpu_s(self) -> float:
        """CPU seconds of a request at least, once all is there that the first few load."""
        most = min(run.cpu_s / run.requests for run in self.many)
        # The few that were disturbed least: what they take more is taken off of all others.
        first = min(self.few, key=lambda run: run.cpu_s - run.requests * most)
        return max(1e-9, min((run.cpu_s - first.cpu_s) / (run.requests - first.requests) for run in self.many))

    @property
    def open_cpu_s(self) -> float:
        """CPU seconds of opening at least; nothing of what cannot be measured."""
        return min((run.open_cpu_s for run in (*self.few, *self.many)), default=1e-9)

    @property
    def resident_bytes(self) -> int:
        """Resident memory at the end."""
        return int(median(run.resident_bytes for run in self.many))


def measure(qemu: Qemu, image: Path, cell: Cell, requests: int) -> Taken:
    """Make one request after the other and see what they took.

    :param image: where the cell's image is.
    :raise QemuCrashed: if QEMU dies of it.
    :raise QemuError: if the image does not open.
    """
    for tried in range(_TRIES):
        try:
            if (taken := _measure(qemu, image, cell, requests)) is not None:
                return taken
        except QemuCrashed:
            if tried:  # 10.0 was seen to crash once in some thousand runs
                raise
        requests *= 2
    raise QemuError("qemu-img bench was done each time before it could be held", path=image, hint="try again")


def _measure(qemu: Qemu, image: Path, cell: Cell, requests: int) -> Taken | None:
    """Measure once; None where the requests were so few and fast that they were done before QEMU could be held."""
    name: Path | str = image if cell.l2_cache_bytes is None else with_l2_caches(image, cell.l2_cache_bytes)
    # A flush costs what the layers above the storage make of it: the storage's own part is left out.
    cache = "unsafe" if cell.work == "flush" else "writeback"
    with reading(
        qemu,
        name,
        (cell.size, cell.step),
        requests=requests,
        aio=cell.aio,
        cache=cache,
        options=_WORK[cell.work],
    ) as work:
        pid = work.process.pid
        opened = sum(cpu_times(pid))
        work.go()
        if not work.until_done():
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
    return Taken(requests, taken, opened, 0 if resident is None else resident.own_bytes)


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
