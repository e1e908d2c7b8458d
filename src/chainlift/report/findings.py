"""What the figures say, in sentences computed from them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import inf, lgamma, log
from signal import Signals
from typing import TYPE_CHECKING

from chainlift.report.measures import (
    HOST,
    HOST_MEMORY,
    MEMORY_BOOT,
    MEMORY_READ,
    RANDOM,
    READ,
    STREAM,
    STREAM_HOST,
    STREAM_HOST_MEMORY,
    STREAM_MEMORY,
    Measure,
    host_cpu,
)
from chainlift.results.statistics import Growth, fit_chain_growth
from chainlift.units import format_bytes, format_ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chainlift.report.data import Results, Series
    from chainlift.results.model import Sample

#: From here on a test shows the chain's cost in full; under :data:`HIDES` it hides it.
SHOWS = 3.0
HIDES = 1.25
#: With no effect at all, half of all pairs of samples lie the other way round.
OVERLAP = 0.25


@dataclass(frozen=True)
class Effect:
    """A measure at the shortest and the longest chain of a series."""

    series: Series
    measure: Measure
    shortest: int
    longest: int
    before: float
    after: float
    #: Samples at one end reach over those at the other so often that the difference may be noise.
    overlaps: bool

    @property
    def ratio(self) -> float:
        """How many times worse the long chain is, whichever direction is worse."""
        worse, better = (self.before, self.after) if self.measure.larger_is_better else (self.after, self.before)
        return worse / better if better else inf


def effect_of(results: Results, series: Series, measure: Measure) -> Effect | None:
    """Return a measure at both ends of a series, or None where it has fewer than two lengths."""
    cells = {n: c for n, c in results.cells(series, measure).items() if c.values}
    if len(cells) < 2:
        return None
    shortest, longest = min(cells), max(cells)
    first, last = cells[shortest], cells[longest]
    return Effect(series, measure, shortest, longest, first.median, last.median, _overlap(first.values, last.values))


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    """Say whether in over a quarter of all pairs the smaller sample is of the group that is larger on the whole."""
    above = sum(a > b for a in one for b in other) + sum(a == b for a in one for b in other) / 2
    share = above / (len(one) * len(other))
    return min(share, 1 - share) > OVERLAP


def growth_of(results: Results, series: Series, measure: Measure) -> Growth | None:
    """Return how what the chain adds to a measure grows with its length."""
    return fit_chain_growth(results.medians(series, measure))


def first_plain(results: Results) -> Series | None:
    """Return the series that the sentences are about: the first run's, unlifted, of the host's own QEMU if there."""
    plain = results.plain
    return next((s for s in plain if s.run == plain[0].run and s.qemu == "host"), next(iter(plain), None))


def steady(results: Results, series: Series, measure: Measure) -> Measure:
    """Return the CPU time of a host read in place of its time, where the machine was too busy to tell the time."""
    if measure.key != "request_s":
        return measure
    run = next(run for run in results.runs if run.label == series.run)
    cpus = run.environment.cpus if run.environment else 1
    loads = [s.load_1m for x, s in results.samples("host") if x == series and s.load_1m is not None]
    cpu = host_cpu(measure)
    busy = sum(load > cpus for load in loads) * 2 > len(loads)
    return cpu if busy and len([v for v in results.medians(series, cpu).values() if v > 0]) > 1 else measure


def headline(results: Results) -> str:
    """Return the one sentence that the page opens with."""
    series = first_plain(results)
    if series is None:
        return "Nothing was measured yet."
    for measure in (*HOST, RANDOM, READ, STREAM, STREAM_HOST):
        effect = effect_of(results, series, steady(results, series, measure))
        if effect is None or not effect.before:
            continue
        subject = measure.subject[0].upper() + measure.subject[1:]
        if effect.measure.key == "cpu_request_s":
            return (
                f"{subject} through {layers(effect.longest)} takes {times(effect.ratio)} the CPU time of one through "
                f"{effect.shortest}."
            )
        if effect.measure.larger_is_better:
            how = "is" if effect.ratio < HIDES else "is lower"
            return (
                f"{subject} {how} through {layers(effect.longest)}: {measure.format(effect.after)} instead of "
                f"{measure.format(effect.before)} through {effect.shortest}."
            )
        return (
            f"{subject} through {layers(effect.longest)} takes {times(effect.ratio)} as long as "
            f"through {effect.shortest}."
        )
    for measure in results.measures():
        for length, median in results.medians(series, measure).items():
            verb = "is" if measure.unit in ("bytes", "iops") else "takes"
            subject = measure.subject[0].upper() + measure.subject[1:]
            return f"{subject} through {layers(length)} {verb} {measure.format(median)}."
    return limits_sentence(results) or "Nothing that was measured ended well."


def limits_sentence(results: Results) -> str | None:
    """Return the longest chain that each QEMU reads."""
    longest = {
        results.qemu_name(series): sample.metrics["longest"]
        for series, sample in results.samples("limits")
        if sample.variant == "read" and "longest" in sample.metrics
    }
    if not longest:
        return None
    if len(longest) == 1:
        (qemu,) = longest
        return f"{qemu} reads chains of up to {longest[qemu]:,.0f} layers."
    each = ", ".join(f"{count:,.0f} on {qemu}" for qemu, count in longest.items())
    return f"The longest chains that can be read: {each}."


def memory_sentence(results: Results) -> str | None:
    """Return what the chain costs in memory, from the test that shows it best."""
    series = first_plain(results)
    if series is None:
        return None
    for measure in (MEMORY_READ, MEMORY_BOOT, STREAM_MEMORY, STREAM_HOST_MEMORY, HOST_MEMORY):
        effect = effect_of(results, series, measure)
        if effect and effect.after > effect.before:
            more = effect.after - effect.before
            each = more / (effect.longest - effect.shortest)
            return f"QEMU holds {format_bytes(more)} more, {format_bytes(each)} for each layer."
    return None


def lift_sentences(results: Results) -> list[str]:
    """Return what each lift made of the longest chain it was measured on, for the measure that shows it best."""
    sentences = []
    plain = first_plain(results)
    if plain is None:
        return []
    for series in results.series:
        if series.is_plain or (series.run, series.qemu) != (plain.run, plain.qemu):
            continue
        for measure in (*HOST, RANDOM, READ, STREAM, STREAM_HOST):
            chosen = steady(results, plain, measure)
            lifted, chain = results.medians(series, chosen), results.medians(plain, chosen)
            common = [n for n in lifted if n in chain]
            if not common or len(chain) < 2 or max(common) == min(chain) or not chain[min(chain)]:
                continue
            length, base = max(common), chain[min(chain)]
            before, after = chain[length] / base, lifted[length] / base
            if measure.larger_is_better:
                before, after = 1 / before, 1 / after
            article = "an" if series.lift[:1] in "aeiou" else "a"
            what = "the CPU time of one" if chosen.key == "cpu_request_s" else "what it takes"
            sentences.append(
                f"Behind {article} {series.lift}, {measure.subject} of the same {layers(length)} takes {times(after)} "
                f"{what} through {min(chain)}, instead of {times(before)}."
            )
            break
    return sentences


def best_growth(results: Results) -> tuple[Measure, Growth] | None:
    """Return how the cost of a 4 KiB read grows: of its time and CPU time, the one of which the samples say most."""
    series = first_plain(results)
    if series is None:
        return None
    fitted = [(m, g) for h in HOST for m in (h, host_cpu(h)) if (g := growth_of(results, series, m)) is not None]
    small = [f for f in fitted if f[0].variant == HOST[0].variant] or fitted
    return min(small, key=lambda f: (-len(f[1].lengths), f[1].exponent_high - f[1].exponent)) if small else None


def is_determined(growth: Growth) -> bool:
    """Say whether the samples tell the exponent at all: its uncertainty is smaller than itself."""
    return (growth.exponent_high - growth.exponent_low) / 2 < growth.exponent


def growth_sentence(results: Results) -> str | None:
    """Return the answer to the experiment's question of how the cost grows, linear or factorial."""
    series, found = first_plain(results), best_growth(results)
    if series is None or found is None:
        return None
    measure, growth = found
    first, last = growth.lengths[0], growth.lengths[-1]
    text = f"What the chain adds to {measure.subject} grows as length^{growth.exponent:.1f}"
    if len(growth.lengths) > 2:
        half = (growth.exponent_high - growth.exponent_low) / 2
        text += f" ± {half:.1f} (95 %, {len(growth.lengths)} lengths from {first:,} to {last:,}). "
    else:
        text += f" between {first:,} and {last:,} layers (two points, so without an uncertainty). "
    medians = results.medians(series, measure)
    floor = medians[min(medians)]
    before = growth.lengths[-2]
    grown = (medians[last] - floor) / (medians[before] - floor)
    factorial = (lgamma(last + 1) - lgamma(before + 1)) / log(10)
    return text + (
        f"From {before:,} to {last:,} layers it grows {fold(grown)}, where a linear cost would grow "
        f"{fold(last / before)} and a factorial one 10^{factorial:,.0f}-fold."
    )


def steps(results: Results, series: Series, measure: Measure) -> list[tuple[int, int, float]]:
    """Return the exponent between each two neighbouring lengths: (shorter, longer, exponent of the added cost)."""
    medians = results.medians(series, measure)
    if not medians:
        return []
    floor = medians[min(medians)]
    over = [(n, v - floor) for n, v in medians.items() if v > floor and n > 0]
    return [(n, m, log(w / v) / log(m / n)) for (n, v), (m, w) in pairwise(over)]


def describe_failure(sample: Sample) -> str:
    """Name an outcome: ``crashed, signal 11 (SIGSEGV)``; ``""`` where all went well."""
    if sample.outcome == "ok":
        return ""
    if sample.signal is None:
        return sample.outcome
    try:
        return f"{sample.outcome}, signal {sample.signal} ({Signals(sample.signal).name})"
    except ValueError:
        return f"{sample.outcome}, signal {sample.signal}"


def failure_sentences(results: Results) -> list[str]:
    """Return a sentence for each kind of failure: ``QEMU 11.1 crashed, signal 11 (SIGSEGV), at length 1,000 (...)``."""
    lengths: dict[tuple[str, str, str], set[int]] = {}
    for series, sample in results.failures():
        what = describe_failure(sample)
        lifted = "" if series.is_plain else f" behind the {series.lift}"
        # QEMU crashes; that something failed may have any reason, which the detail gives.
        reason = f": {_shortened(sample.detail)}" if sample.outcome == "failed" and sample.detail else ""
        subject = "Measuring" if sample.outcome == "failed" else results.qemu_name(series)
        test = f"{sample.test} {sample.variant}".strip()
        lengths.setdefault((f"{subject}{lifted} {what}", test, reason), set()).add(sample.length)
    tests: dict[tuple[str, str, str], list[str]] = {}
    for (what, test, reason), found in lengths.items():
        tests.setdefault((what, ", ".join(f"{n:,}" for n in sorted(found)), reason), []).append(test)
    return [f"{what}, at length {n} ({', '.join(names)}){why}." for (what, n, why), names in tests.items()]


def _shortened(text: str, most: int = 160) -> str:
    return text.rstrip(".") if len(text) <= most else text[:most] + " ..."


def comparison_sentence(results: Results) -> str | None:
    """Return what the longest chain that all unlifted series were measured on costs each, in CPU time if known."""
    for measure in (both for m in HOST for both in (host_cpu(m), m)):
        medians = {s: m for s in results.plain if len(m := results.medians(s, measure)) > 1}
        common = sorted(set.intersection(*(set(m) for m in medians.values()))) if medians else []
        if len(medians) < 2 or len(common) < 2:
            continue
        parts = [f"{results.label(s, among=medians)} {times(m[common[-1]] / m[common[0]])}" for s, m in medians.items()]
        subject = measure.subject[0].upper() + measure.subject[1:]
        return f"{subject} through {layers(common[-1])} against {common[0]:,}: {', '.join(parts)}."
    return None


def layers(count: int) -> str:
    """Write a chain length."""
    return f"{count:,} layer" + ("" if count == 1 else "s")


def times(ratio: float) -> str:
    """Write a ratio for a sentence: ``43 times``, ``1.25 times``."""
    return f"{format_ratio(ratio).removesuffix('x')} times"


def fold(ratio: float) -> str:
    """Write a growth for a sentence: ``12-fold``, ``3-fold``, ``1.5-fold``."""
    return f"{ratio:.0f}-fold" if ratio >= 9.5 or abs(ratio - round(ratio)) < 0.05 else f"{ratio:.1f}-fold"


def percent(share: float, digits: int = 0) -> str:
    """Write a share: ``54 %``."""
    return f"{share * 100:.{digits}f} %"
