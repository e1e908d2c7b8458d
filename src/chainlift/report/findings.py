"""What the figures say, in sentences computed from them."""

from __future__ import annotations

from signal import Signals
from typing import TYPE_CHECKING

from chainlift.report.effects import (
    Effect,
    Verdict,
    article,
    behind,
    capital,
    cost_measures,
    effect_of,
    host_measures,
    layers,
    plain_series,
    steady,
    subject_series,
    times,
    verdict_of,
    within,
)
from chainlift.report.measures import (
    MEMORY_BOOT,
    MEMORY_READ,
    STREAM_HOST_MEMORY,
    STREAM_MEMORY,
    Measure,
    host_cpu,
)
from chainlift.results.intervals import Interval, median_interval, ratio_interval
from chainlift.units import format_bytes

if TYPE_CHECKING:
    from chainlift.report.data import Results, Series
    from chainlift.results.model import Sample


def headline(results: Results) -> str:
    """Return the one sentence that the page opens with."""
    series = subject_series(results)
    if series is None:
        return "Nothing was measured yet."
    for measure in cost_measures(results):
        effect = effect_of(results, series, steady(results, series, measure))
        if effect is not None and effect.before and effect.after:
            return effect_sentence(effect, measure)
    for measure in results.measures():
        for length, cell in results.cells(series, measure).items():
            if cell.values:
                verb = "is" if measure.unit in ("bytes", "iops") else "takes"
                interval = within(median_interval(cell.values), measure.format)
                return capital(
                    f"{behind(series)}{measure.subject} through {layers(length)} {verb} "
                    f"{measure.format(cell.median)} {interval}."
                )
    return limits_sentence(results) or "Nothing that was measured ended well."


def effect_sentence(effect: Effect, measure: Measure) -> str:
    """Say what the longest chain does to a measure.

    :param measure: what the sentence is about; of its CPU time where the effect is.
    """
    start, subject, interval = behind(effect.series), measure.subject, within(effect.interval)
    long, short = layers(effect.longest), f"{effect.shortest:,}"
    cpu = effect.measure.key == "cpu_request_s"
    if effect.verdict is Verdict.UNTOLD:
        what = "is lower" if measure.larger_is_better else "takes more CPU time" if cpu else "takes longer"
        ratio = f"{times(effect.ratio)} {interval}"
        return capital(f"{start}whether {subject} {what} through {long} than through {short} cannot be told: {ratio}.")
    if measure.larger_is_better:
        how = "lower" if effect.ratio >= 1 else "higher"
        values = f"{measure.format(effect.after)} instead of {measure.format(effect.before)}"
        factor = Interval(effect.ratio, effect.ratio, effect.ratio) if effect.interval is None else effect.interval
        factor = factor if effect.ratio >= 1 else factor.inverse()
        interval = within(factor if effect.interval is not None else None)
        return capital(
            f"{start}{subject} is {times(factor.value)} {how} through {long} than through {short}: {values} {interval}."
        )
    than = "the CPU time of one through" if cpu else "as long as through"
    return capital(f"{start}{subject} through {long} takes {times(effect.ratio)} {than} {short} {interval}.")


def limits_sentence(results: Results) -> str | None:
    """Return the longest chain that each QEMU reads; where none failed, that is as long as was tried."""
    found: dict[str, tuple[float, bool]] = {}
    for series, sample in results.samples("limits"):
        if sample.variant == "read" and "longest" in sample.metrics and series.is_plain:
            longest = sample.metrics["longest"]
            found[results.qemu_name(series)] = longest, longest >= sample.length
    if not found:
        return None
    if len(found) == 1:
        ((qemu, (longest, all_of_them)),) = found.items()
        if all_of_them:
            return (
                f"{qemu} reads chains of {layers(int(longest))}, the longest that was tried, and may read longer ones."
            )
        return f"{qemu} reads chains of up to {layers(int(longest))}." if longest else f"{qemu} reads no chain at all."
    each = ", ".join(
        f"{'at least ' * all_of_them}{longest:,.0f} on {qemu}" for qemu, (longest, all_of_them) in found.items()
    )
    return f"The longest chains that can be read: {each}."


def memory_effect(results: Results) -> Effect | None:
    """Return what the chain costs in memory, of the first test that has two lengths."""
    series = subject_series(results)
    measures = [m for m in results.measures() if m.key == "memory_bytes" and m.test == "host"]
    for measure in (MEMORY_READ, MEMORY_BOOT, STREAM_MEMORY, STREAM_HOST_MEMORY, *measures):
        effect = effect_of(results, series, measure) if series is not None else None
        if effect is not None:
            return effect
    return None


def memory_sentence(results: Results) -> str | None:
    """Say what the chain costs in memory: in which test, and between which lengths."""
    effect = memory_effect(results)
    if effect is None:
        return None
    start, subject, more = behind(effect.series), effect.measure.subject, effect.difference
    ends = f"through {layers(effect.longest)} than through {effect.shortest:,}"
    verdict = verdict_of(more, 0.0)
    interval = within(more, format_bytes)
    if verdict is Verdict.UNTOLD:
        return capital(f"{start}whether {subject} is more {ends} cannot be told {interval}.")
    value = effect.after - effect.before
    if value <= 0:
        return capital(f"{start}{subject} is {format_bytes(-value)} less {ends} {interval}.")
    each = format_bytes(value / (effect.longest - effect.shortest))
    return capital(f"{start}{subject} is {format_bytes(value)} more {ends} {interval}, {each} for each layer.")


def lift_sentences(results: Results) -> list[str]:
    """Return what each lift made of the longest chain it was measured on, for the measure that shows it best."""
    sentences = []
    plain = plain_series(results)
    if plain is None:
        return []
    for series in results.series:
        if series.is_plain or (series.run, series.qemu, series.setting) != (plain.run, plain.qemu, plain.setting):
            continue
        for measure in cost_measures(results):
            sentence = _lift_sentence(results, plain, series, measure)
            if sentence is not None:
                sentences.append(sentence)
                break
    return sentences


def _lift_sentence(results: Results, plain: Series, series: Series, measure: Measure) -> str | None:
    chosen = steady(results, plain, measure)
    lifted = {n: c for n, c in results.cells(series, chosen).items() if c.values}
    chain = {n: c for n, c in results.cells(plain, chosen).items() if c.values}
    common = [n for n in lifted if n in chain]
    if not common or not all(c.median for c in (*lifted.values(), *chain.values())):
        return None
    length, shortest = max(common), min(chain)
    here, there, base = lifted[length], chain[length], chain[shortest]
    rate = chosen.larger_is_better
    than = "the CPU time of one" if chosen.key == "cpu_request_s" else "that" if rate else "as long as"
    text = f"behind {article(series.lift)} {series.lift}, {measure.subject} through {layers(length)} "
    text += "is " if rate else "takes "
    gain = ratio_interval(here.values, there.values) if rate else ratio_interval(there.values, here.values)
    gained = here.median / there.median if rate else there.median / here.median
    if shortest != length:
        beside = ratio_interval(here.values, base.values)
        known = "" if beside is None and gain is None else f" {within(beside)}"
        text += f"{times(here.median / base.median)} {than} through {shortest:,}{known}, "
        text += f"instead of {times(there.median / base.median)}: "
    else:
        text += f"{measure.format(here.median)}, instead of {measure.format(there.median)}: "
    speed = f"{times(gained)} its speed {within(gain)}"
    if verdict_of(gain, 1.0) is Verdict.UNTOLD:
        return capital(f"{text}whether it is faster than the chain itself cannot be told, {speed}.")
    return capital(f"{text}beside the chain itself {speed}.")


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
    plain = [s for s in results.series if s.is_plain]
    for measure in (both for m in host_measures(results) for both in (host_cpu(m), m)):
        cells = {s: {n: c for n, c in results.cells(s, measure).items() if c.values} for s in plain}
        cells = {s: found for s, found in cells.items() if len(found) > 1}
        common = sorted(set.intersection(*(set(found) for found in cells.values()))) if cells else []
        if len(cells) < 2 or len(common) < 2:
            continue
        short, long = common[0], common[-1]
        parts = [
            f"{results.label(s, among=cells)} {times(found[long].median / found[short].median)} "
            f"{within(ratio_interval(found[long].values, found[short].values))}"
            for s, found in cells.items()
            if found[short].median
        ]
        return f"{capital(measure.subject)} through {layers(long)} against {short:,}: {', '.join(parts)}."
    return None
