"""What a measure does between the shortest and the longest chain of a series, with its interval, and how that is said.

No sentence of a report states what its interval does not bear: a ratio whose interval holds 1 is no effect, and one
sample has no interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import TYPE_CHECKING

from chainlift.report.measures import (
    RANDOM,
    READ,
    STREAM,
    STREAM_HOST,
    Measure,
    host_cpu,
    host_parts,
)
from chainlift.results.intervals import Interval, difference_interval, ratio_interval
from chainlift.units import counted, format_ratio

if TYPE_CHECKING:
    from collections.abc import Callable

    from chainlift.report.data import Results, Series


class Verdict(Enum):
    """What an interval says of an effect."""

    MORE = "more"
    LESS = "less"
    #: The interval holds "no effect".
    UNTOLD = "cannot be told"
    #: There is no interval: too few samples.
    ONCE = "measured once"


def verdict_of(interval: Interval | None, nothing: float) -> Verdict:
    """Judge an interval; ``nothing`` is the value without an effect: 1 of a ratio, 0 of a difference."""
    if interval is None:
        return Verdict.ONCE
    if interval.low > nothing:
        return Verdict.MORE
    return Verdict.LESS if interval.high < nothing else Verdict.UNTOLD


@dataclass(frozen=True)
class Effect:
    """A measure at the shortest and the longest chain of a series."""

    series: Series
    measure: Measure
    shortest: int
    longest: int
    #: The medians.
    before: float
    after: float
    #: How many times worse the long chain is, whichever direction is worse; None where a sample is alone.
    interval: Interval | None
    #: What the long chain adds.
    difference: Interval | None

    @property
    def ratio(self) -> float:
        """How many times worse the long chain is."""
        worse, better = (self.before, self.after) if self.measure.larger_is_better else (self.after, self.before)
        return worse / better if better else inf

    @property
    def verdict(self) -> Verdict:
        """Whether the long chain is worse (more), better (less), or neither can be told."""
        return verdict_of(self.interval, 1.0)


def effect_of(results: Results, series: Series, measure: Measure) -> Effect | None:
    """Return a measure at both ends of a series, or None where it has fewer than two lengths.

    :param results: what was measured.
    :param series: of one QEMU and one lift.
    :param measure: what is compared.
    """
    cells = {n: c for n, c in results.cells(series, measure).items() if c.values}
    if len(cells) < 2:
        return None
    shortest, longest = min(cells), max(cells)
    first, last = cells[shortest], cells[longest]
    worse, better = (first, last) if measure.larger_is_better else (last, first)
    return Effect(
        series,
        measure,
        shortest,
        longest,
        first.median,
        last.median,
        ratio_interval(worse.values, better.values),
        difference_interval(last.values, first.values),
    )


def subject_series(results: Results) -> Series | None:
    """Return the series that the sentences are about.

    The first run's, unlifted, of the host's own QEMU, as far as there is one.
    """
    shown = results.shown
    return next((s for s in shown if s.run == shown[0].run and s.qemu == "host"), next(iter(shown), None))


def plain_series(results: Results) -> Series | None:
    """Return the same, where it is of an unlifted chain."""
    series = subject_series(results)
    return series if series is not None and series.is_plain else None


def behind(series: Series) -> str:
    """Begin a sentence about a series: ``Behind an index,`` where it is not of the chain itself."""
    return "" if series.is_plain else f"Behind {article(series.lift)} {series.lift}, "


def steady(results: Results, series: Series, measure: Measure) -> Measure:
    """Return the CPU time of a host read in place of its time, where it is known.

    The time of a small read is mostly that of waking a thread and waiting for a CPU: the same chain gave 17 times in
    one run and 92 in another. CPU time hardly knows what else runs.

    :param results: what was measured.
    :param series: of one QEMU and one lift.
    :param measure: what a sentence is about.
    """
    if measure.key != "request_s" or "-cold-" in measure.variant:
        return measure
    cpu = host_cpu(measure)
    return cpu if len([v for v in results.medians(series, cpu).values() if v > 0]) > 1 else measure


def cost_measures(results: Results) -> list[Measure]:
    """Return the measures that show what the chain costs, in the order in which they are asked for a headline."""
    return [*host_measures(results), RANDOM, READ, STREAM, STREAM_HOST]


def host_measures(results: Results) -> list[Measure]:
    """Return the host reads that occur: small ones first, of each size the fewest in flight first."""
    found = [m for m in results.measures() if m.key == "request_s"]
    return sorted(found, key=lambda m: host_parts(m.variant))


def times(ratio: float) -> str:
    """Write a ratio for a sentence: ``43 times``, ``1.25 times``."""
    return f"{_number(ratio)} times"


def _number(ratio: float) -> str:
    return format_ratio(ratio).removesuffix("x")


def within(interval: Interval | None, write: Callable[[float], str] = _number) -> str:
    """Write an interval behind its value: ``(95 %: 41 to 45)``; or why there is none."""
    if interval is None:
        return "(measured once)"
    if interval.is_point:
        return "(all samples are alike)"
    return f"(95 %: {write(interval.low)} to {write(interval.high)})"


def bounds(interval: Interval | None, write: Callable[[float], str] = _number) -> str:
    """Write an interval's ends for a table: ``41 to 45``; nothing where there is none."""
    return "" if interval is None else f"{write(interval.low)} to {write(interval.high)}"


def in_brackets(text: str, interval: Interval | None, write: Callable[[float], str] = _number) -> str:
    """Write a value for a table with its interval behind it: ``88 % (81 to 94)``.

    :param text: the value.
    :param interval: of it; None: there is none.
    :param write: writes an end of the interval.
    """
    return text if interval is None else f"{text} ({bounds(interval, write)})"


def layers(count: int) -> str:
    """Write a chain length."""
    return counted(count, "layer")


def percent(share: float, digits: int = 0) -> str:
    """Write a share: ``54 %``."""
    return f"{share * 100:.{digits}f} %"


def article(noun: str) -> str:
    """Return the indefinite article of a noun."""
    return "an" if noun[:1] in "aeiou" else "a"


def capital(text: str) -> str:
    """Begin with a capital letter."""
    return text[:1].upper() + text[1:]


def join(names: list[str]) -> str:
    """Write a list as a sentence has it."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
