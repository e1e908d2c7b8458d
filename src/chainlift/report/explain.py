"""Which test shows what the chain costs, which one hides it, and why: computed from the run's own figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chainlift.report.findings import HIDES, SHOWS, Effect, effect_of, first_plain, percent
from chainlift.report.measures import HOST, RANDOM, READ, STREAM, STREAM_HOST, cpu_s
from chainlift.results.statistics import summarise
from chainlift.units import format_bytes, format_ratio, format_seconds

if TYPE_CHECKING:
    from chainlift.report.data import Results, Series


@dataclass(frozen=True)
class Verdict:
    """One test's answer."""

    effect: Effect
    #: ``in full``, ``in part``, ``hardly``.
    shows: str


def verdicts(results: Results) -> list[Verdict]:
    """Return what each test that has two lengths shows of the chain, the clearest first."""
    series = first_plain(results)
    if series is None:
        return []
    effects = [effect_of(results, series, m) for m in (*HOST, RANDOM, READ, STREAM, STREAM_HOST)]
    found = [Verdict(e, _shows(e)) for e in effects if e is not None]
    return sorted(found, key=lambda v: -v.effect.ratio)


def _shows(effect: Effect) -> str:
    if effect.overlaps or effect.ratio < HIDES:
        return "hardly: within the noise" if effect.overlaps else "hardly"
    return "in full" if effect.ratio >= SHOWS else "in part"


def explanation(results: Results) -> list[str]:
    """Return the paragraphs that explain the difference between the tests."""
    found = verdicts(results)
    series = first_plain(results)
    if not found or series is None:
        return []
    text = [_ranking(found)]
    text += _bound(results, series, found[0].effect)
    return [t for t in text if t]


def _ranking(found: list[Verdict]) -> str:
    full = [v for v in found if v.shows == "in full"]
    little = [v for v in found if v.shows.startswith("hardly")]
    part = [v for v in found if v.shows == "in part"]
    sentences = []
    for group, what in (
        (full, "The chain's cost is plain in"),
        (part, "It is there, diluted by other work, in"),
        (little, "It is within the noise, or nearly, in"),
    ):
        if group:
            names = [f"{_name(v.effect)} ({format_ratio(v.effect.ratio)})" for v in group]
            sentences.append(f"{what} {_join(names)}.")
    return " ".join(sentences)


def _bound(results: Results, series: Series, clearest: Effect) -> list[str]:
    """Compare the guest's read with the block layer's share of it."""
    read = effect_of(results, series, READ)
    if read is None:
        return []
    text = []
    size = _one(results, series, "read", "bytes")
    per_byte = _host_seconds_per_byte(results, series)
    if size and per_byte:
        both = [n for n in (read.shortest, read.longest) if n in per_byte]
        shares = [(n, per_byte[n] * size, m) for n in both if (m := results.medians(series, READ).get(n))]
        if shares:
            parts = [
                f"{format_seconds(host)} at length {n:,}, {percent(host / guest)} of the guest's "
                f"{format_seconds(guest)}"
                for n, host, guest in shares
            ]
            text.append(
                f"The same {format_bytes(size)} read through the block layer alone, without a guest and in requests of "
                f"4 MiB, take {' and '.join(parts)}."
            )
            if len(shares) == 2:
                host_more = shares[1][1] - shares[0][1]
                guest_more = shares[1][2] - shares[0][2]
                text.append(
                    f"So the chain adds {format_seconds(max(host_more, 0))} to the block layer's work and "
                    f"{_signed(guest_more)} to the guest's dd."
                )
            if shares[0][1] < 0.25 * shares[0][2]:
                emulated = _is_emulated(results, series)
                text.append(
                    "At the shortest chain the guest's dd is bound by "
                    + ("the emulated CPU, which copies every byte" if emulated else "what the guest itself does")
                    + f", not by the block layer: it shows {format_ratio(read.ratio)} where {_name(clearest)} show "
                    f"{format_ratio(clearest.ratio)}."
                )
    busy = _busy(results, series, read.shortest)
    if busy is not None:
        text.append(f"QEMU used {percent(busy)} of a CPU during the measured dd at length {read.shortest:,}.")
    return [" ".join(text)] if text else []


def _host_seconds_per_byte(results: Results, series: Series) -> dict[int, float]:
    values: dict[int, list[float]] = {}
    for other, sample in results.samples("host"):
        size, wall = sample.metrics.get("bytes"), sample.metrics.get("wall_s")
        if other == series and sample.variant == "4m-seq-d1" and sample.outcome == "ok" and size and wall:
            values.setdefault(sample.length, []).append(wall / size)
    return {n: s.median for n, v in values.items() if (s := summarise(v))}


def _one(results: Results, series: Series, test: str, metric: str) -> float | None:
    return next((v for s, x in results.samples(test) if s == series and (v := x.metrics.get(metric))), None)


def _busy(results: Results, series: Series, length: int) -> float | None:
    shares = [
        cpu / wall
        for other, s in results.samples("read")
        if other == series and s.length == length and s.outcome == "ok"
        if (cpu := cpu_s(s)) is not None and (wall := s.metrics.get("wall_s"))
    ]
    summary = summarise(shares)
    return None if summary is None else summary.median


def _is_emulated(results: Results, series: Series) -> bool:
    run = next(r for r in results.runs if r.label == series.run)
    qemus = run.environment.qemus if run.environment else []
    return any(q.label == series.qemu and q.accelerator == "tcg" for q in qemus)


def _name(effect: Effect) -> str:
    measure = effect.measure
    title = measure.title[0].lower() + measure.title[1:]
    return f"host reads of {measure.title}" if measure.test == "host" else title


def _signed(seconds: float) -> str:
    return format_seconds(seconds) if seconds >= 0 else f"nothing ({format_seconds(seconds)})"


def _join(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
