"""Which test shows what the chain costs, and what the guest's read is made of: computed from the run's own samples."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from chainlift.report.effects import (
    Effect,
    Verdict,
    cost_measures,
    effect_of,
    host_measures,
    join,
    layers,
    percent,
    plain_series,
    steady,
    within,
)
from chainlift.report.measures import READ
from chainlift.results.intervals import difference_interval, ratio_interval
from chainlift.units import format_bytes, format_ratio, format_seconds

if TYPE_CHECKING:
    from chainlift.report.data import Results, Series
    from chainlift.results.intervals import Interval


def effects(results: Results) -> list[Effect]:
    """Return what each test that has two lengths shows of the chain, the clearest first."""
    series = plain_series(results)
    if series is None:
        return []
    found = [effect_of(results, series, steady(results, series, m)) for m in cost_measures(results)]
    return sorted((e for e in found if e is not None), key=lambda e: -e.ratio)


def explanation(results: Results) -> list[str]:
    """Return the paragraphs that explain the difference between the tests."""
    found, series = effects(results), plain_series(results)
    if not found or series is None:
        return []
    return [text for text in (_ranking(found), *_bound(results, series)) if text]


def _ranking(found: list[Effect]) -> str:
    sentences = []
    for verdict, what in (
        (Verdict.MORE, "The longest chain costs more, beyond the noise, in"),
        (Verdict.LESS, "It costs less, beyond the noise, in"),
        (Verdict.UNTOLD, "No difference can be told in"),
        (Verdict.ONCE, "Measured once at one of the two lengths, so that nothing is known of the noise:"),
    ):
        if group := [e for e in found if e.verdict is verdict]:
            names = [f"{name_of(e)} ({format_ratio(e.ratio)}{_ends(e.interval)})" for e in group]
            sentences.append(f"{what} {join(names)}.")
    return " ".join(sentences)


def _ends(interval: Interval | None) -> str:
    if interval is None or interval.is_point:
        return ""
    return f", {format_ratio(interval.low).removesuffix('x')} to {format_ratio(interval.high)}"


def _bound(results: Results, series: Series) -> list[str]:
    """Compare the guest's read with what the block layer alone takes for the same bytes."""
    read = effect_of(results, series, READ)
    size = _size_of_read(results, series)
    if read is None or not size:
        return []
    cells = results.cells(series, READ)
    alone = {n: [v * size for v in values] for n, values in _host_seconds_per_byte(results, series).items()}
    both = [n for n in (read.shortest, read.longest) if n in alone]
    if not both:
        return []
    parts, shares = [], []
    for length in both:
        share = ratio_interval(alone[length], cells[length].values)
        shares.append(share)
        host, guest = median(alone[length]), cells[length].median
        parts.append(
            f"{format_seconds(host)} at {layers(length)}, {percent(host / guest)} of the guest's "
            f"{format_seconds(guest)} {within(share, percent)}"
        )
    text = [f"The same {format_bytes(size)}, through the block layer alone and in large requests: {join(parts)}."]
    if len(both) == 2:
        host_more = difference_interval(alone[both[1]], alone[both[0]])
        guest_more = difference_interval(cells[both[1]].values, cells[both[0]].values)
        if host_more is not None and guest_more is not None:
            host_text, guest_text = _added(host_more), _added(guest_more)
            text.append(f"The chain adds {host_text} to the block layer's work and {guest_text} to the guest's dd.")
    if both[0] == read.shortest and shares[0] is not None and shares[0].high < 0.5:
        rest = "the emulated CPU, which copies every byte" if _is_emulated(results, series) else "the guest's own work"
        text.append(
            f"At {layers(read.shortest)} at most {percent(shares[0].high)} of the guest's dd are the block layer's; "
            f"the rest is {rest}, and hides what the chain adds."
        )
    return [" ".join(text)]


def _added(more: Interval) -> str:
    if more.low <= 0 <= more.high and not more.is_point:
        return f"nothing that could be told {within(more, format_seconds)}"
    return f"{format_seconds(more.value)} {within(more, format_seconds)}"


def _host_seconds_per_byte(results: Results, series: Series) -> dict[int, list[float]]:
    """Return the samples of the largest host read with the fewest in flight, by length."""
    large = [m.variant for m in host_measures(results) if m.variant.startswith("4m-")][:1]
    values: dict[int, list[float]] = {}
    for other, sample in results.samples("host"):
        size, wall = sample.metrics.get("bytes"), sample.metrics.get("wall_s")
        if other == series and sample.variant in large and sample.outcome == "ok" and size and wall:
            values.setdefault(sample.length, []).append(wall / size)
    return values


def _size_of_read(results: Results, series: Series) -> float | None:
    return next((v for s, x in results.samples("read") if s == series and (v := x.metrics.get("bytes"))), None)


def _is_emulated(results: Results, series: Series) -> bool:
    run = next(r for r in results.runs if r.label == series.run)
    qemus = run.environment.qemus if run.environment else []
    return any(q.label == series.qemu and q.accelerator == "tcg" for q in qemus)


def name_of(effect: Effect) -> str:
    """Name an effect's test in a sentence."""
    measure = effect.measure
    title = measure.title[0].lower() + measure.title[1:]
    return f"host reads of {measure.title}" if measure.test == "host" else title
