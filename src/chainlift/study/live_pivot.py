"""The test ``live``: a guest reads at random, and its disk is switched to an index and back under it, in one boot.

What the guest sees is told by the guest: fio notes every request. The series goes to ``live/`` of the result directory
(see :mod:`chainlift.report.figures.live`), the sample holds the longest request of each part. Its clock and ours are
laid over each other at the end of fio's work, to a few tenths of a second.
"""

from __future__ import annotations

import csv
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chainlift.errors import GuestError, InputError
from chainlift.lift.live.disk import RunningDisk
from chainlift.lift.live.session import open_session
from chainlift.lift.verbs import index, restore
from chainlift.results.store import LIVE
from chainlift.study.probe import Probe, Reading, Setup, register

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from chainlift.guest.interface import Guest
    from chainlift.lift.live.steps import Timings
    from chainlift.results.model import Test
    from chainlift.study.plan import Plan

_LOG: Final = "/tmp/chainlift-live"
_INTERVAL_S: Final = 0.1
#: fio's log has milliseconds, nanoseconds, direction, bytes; one line here an interval, so that little is carried over.
_SUM_UP: Final = (
    "awk -F', *' '{i = int($1 / %d); n[i] += $4; if ($2 > m[i] + 0) m[i] = $2} "
    'END {for (i in n) printf "%%d %%d %%.0f\\n", i, n[i], m[i]}\' %s_clat.1.log'
)


@dataclass(frozen=True)
class Interval:
    """What the guest read in a tenth of a second."""

    #: Its beginning, since the recording began.
    time_s: float
    bytes: int
    #: The longest request that ended in it.
    longest_s: float


@dataclass(frozen=True)
class Switch:
    """When the disk was switched."""

    event: str
    began_s: float
    ended_s: float
    timings: Timings
    extents: int = 0


@dataclass(frozen=True)
class LiveProbe:
    """Read for a while, pivot to an index, read on, go back, read on."""

    title = "live pivot"
    names: Sequence[tuple[Test, str]] = (("live", ""),)
    #: There is nothing to switch a lifted disk to.
    lifts_itself = True
    #: It writes a file of its own.
    is_repeatable = False

    def lengths(self, plan: Plan) -> Sequence[int]:
        """Return the longest that a guest is booted on: the shorter ones would only show less."""
        return [max(plan.guest_lengths or plan.lengths)]

    def measure(self, setup: Setup) -> Iterator[Reading]:
        """See :class:`~chainlift.study.probe.Probe`."""
        part_s = setup.plan.random.duration_s
        with setup.boot() as guest:
            if guest.run("command -v fio").status != 0:
                raise InputError("the guest has no fio", hint="install fio in it")
            _start(guest, setup)
            began = time.monotonic()
            time.sleep(part_s)
            switches = []
            for event in ("pivot", "restore"):
                start = time.monotonic() - began
                with open_session(guest.vm.spare_qmp_path, image=setup.image) as session:
                    disk = RunningDisk(session, qemu=None)
                    if event == "pivot":
                        extents = index(disk).manifest.extents
                    else:
                        restore(disk, clean=True)
                end = time.monotonic() - began
                switches.append(Switch(event, start, end, disk.timings, extents))
                time.sleep(part_s)
            intervals = _finish(guest, time.monotonic() - began)
            guest.halt()
        name = f"read-{setup.length}-{setup.qemu.label.replace(':', '-').replace('/', '-')}-{setup.repeat + 1}"
        write_series(setup.results / LIVE / f"{name}.csv", intervals, switches)
        yield Reading("live", "", figures(intervals, switches))


def _start(guest: Guest, setup: Setup) -> None:
    random = setup.plan.random
    guest.run(
        f"(setsid fio --name=live --filename={guest.device} --readonly --rw=randread --bs={random.bs} --direct=1 "
        f"--ioengine=libaio --iodepth={random.iodepth} --time_based --runtime=1d --norandommap --randrepeat=1 "
        f"--write_lat_log={_LOG} --disable_lat=1 --disable_slat=1 --eta=never "
        f"</dev/null >/tmp/fio.out 2>&1 & echo $! > /tmp/fio.pid)"
    ).require()


def _finish(guest: Guest, now_s: float) -> list[Interval]:
    """End fio, and return what it has noted by our clock.

    :param now_s: the time now, since the recording began.
    """
    guest.run(
        'kill -INT "$(cat /tmp/fio.pid)"; while kill -0 "$(cat /tmp/fio.pid)" 2>/dev/null; do sleep 0.1; done',
        timeout_s=120,
    )
    text = guest.run(_SUM_UP % (_INTERVAL_S * 1000, _LOG), timeout_s=300).stdout
    return read_intervals(text, now_s, said=guest.run("tail -n 1 /tmp/fio.out").stdout.strip())


def read_intervals(text: str, now_s: float, *, said: str = "") -> list[Interval]:
    """Read the summed-up log, whose last line was written at ``now_s``, and fill in where nothing was read.

    :param text: a line an interval: its number, bytes read, the longest request in ns.
    :param now_s: seconds since the recording began.
    :param said: what the program in the guest printed.
    :raise GuestError: if there is nothing in it; ``said`` is then quoted.
    """
    rows = sorted(tuple(map(int, line.split())) for line in text.splitlines() if line.count(" ") == 2)
    if not rows:
        raise GuestError(f"fio in the guest has noted nothing: {said or 'it said nothing'}")
    found = {number: (count, longest) for number, count, longest in rows}
    first, last = rows[0][0], rows[-1][0]
    shift = now_s - last * _INTERVAL_S
    return [
        Interval(
            round(number * _INTERVAL_S + shift, 3), found.get(number, (0, 0))[0], found.get(number, (0, 0))[1] / 1e9
        )
        for number in range(first, last)  # the last one is not whole
    ]


def figures(intervals: Sequence[Interval], switches: Sequence[Switch]) -> dict[str, float]:
    """Return the sample's metrics: rates of the parts between the switches, the longest request of each part.

    A part of which nothing was recorded has none.
    """
    pivot, restore = switches
    slack_s = 0.5  # as well as the two clocks are known to agree

    def part(first: float, last: float) -> list[Interval]:
        return [interval for interval in intervals if first <= interval.time_s < last]

    before = part(float("-inf"), pivot.began_s - slack_s)
    after = part(pivot.ended_s + slack_s, restore.began_s - slack_s)
    during = part(pivot.began_s - slack_s, pivot.ended_s + slack_s)
    back = part(restore.began_s - slack_s, restore.ended_s + slack_s)
    found: dict[str, float] = {}
    # A part in which nothing was recorded has no figure: none is not 0.
    for name, intervals_of in (("stall_s", during), ("restore_stall_s", back), ("quiet_stall_s", before)):
        if intervals_of:
            found[name] = max(interval.longest_s for interval in intervals_of)
    for name, intervals_of in (("before", before), ("during", during), ("after", after)):
        if intervals_of:
            found[f"bytes_per_s_{name}"] = _rate(intervals_of)
    return found | {
        "pivot_s": pivot.ended_s - pivot.began_s,
        "restore_s": restore.ended_s - restore.began_s,
        "longest_command_s": pivot.timings.longest_s(),
        "extents": float(pivot.extents),
    }


def _rate(intervals: Sequence[Interval]) -> float:
    return sum(interval.bytes for interval in intervals) / (len(intervals) * _INTERVAL_S)


def write_series(path: Path, intervals: Sequence[Interval], switches: Sequence[Switch]) -> None:
    """Write a recording as the report reads it: ``pivot begins`` where a switch began, ``pivot`` where it ended.

    :param path: a CSV file; its directory is made.
    :param intervals: what was read in each.
    :param switches: what was done meanwhile.
    """
    path.parent.mkdir(exist_ok=True)
    rows: list[tuple[float, str, str]] = [(i.time_s, f"{i.bytes / _INTERVAL_S:.0f}", "") for i in intervals]
    rows += [(round(switch.began_s, 3), "", f"{switch.event} begins") for switch in switches]
    rows += [(round(switch.ended_s, 3), "", switch.event) for switch in switches]
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("time_s", "bytes_per_s", "event"))
        writer.writerows(sorted(rows))


@register("live")
def live_probes(plan: Plan) -> Sequence[Probe]:  # noqa: ARG001 - every test's function takes the plan
    """Return the probe of the live test."""
    return [LiveProbe()]
