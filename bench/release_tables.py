"""The tables of docs/upstream.md, as Markdown: ``python bench/release_tables.py [RESULTS/versions [RESULTS/limits]]``.

Medians over the repeats, one column a release of QEMU. Everything comes from the result files; nothing is measured.
"""

import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median

from chainlift.results.growth import fit_growth
from chainlift.results.model import Sample
from chainlift.results.store import ResultDirectory

RESULTS = Path(__file__).parents[1] / "results"


def table(
    results: ResultDirectory, title: str, test: str, variant: str, value: Callable[[Sample], float | None]
) -> None:
    """Print one quantity by chain length and release, and how what the chain adds grows where that can be fitted."""
    qemus = {facts.label: release(facts.version) for facts in results.environment().qemus}
    order = sorted(qemus, key=lambda label: tuple(map(int, qemus[label].split("."))))
    found: dict[tuple[int, str], list[float]] = defaultdict(list)
    ends: dict[tuple[int, str], str] = {}
    for sample in results.samples():
        if (sample.test, sample.variant, sample.lift) != (test, variant, "none"):
            continue
        cell = (sample.length, sample.qemu)
        if sample.outcome != "ok":
            ends[cell] = f"{sample.outcome}, signal {sample.signal}" if sample.signal else sample.outcome
        elif (number := value(sample)) is not None:
            found[cell].append(number)
    lengths = sorted({length for length, _ in [*found, *ends]})
    if not lengths:
        return
    print(f"\n{title}:\n\n| layers | {' | '.join(qemus[label] for label in order)} |")
    print("|---" * (len(order) + 1) + "|")
    for length in lengths:
        cells = [(length, label) for label in order]
        print(f"| {length:,} | {' | '.join(told(found[c]) if c in found else ends.get(c, '') for c in cells)} |")
    # Exponents stand side by side over the lengths that every release has alone.
    common = [n for n in lengths if all(len(found.get((n, label), [])) > 1 for label in order)]
    fits = [fit_growth({n: found[n, label] for n in common}) for label in order]
    if any(fit.is_told for fit in fits):
        powers = [
            f"{fit.exponent:.2f} ({fit.exponent_low:.2f} to {fit.exponent_high:.2f})"
            if fit.is_told
            else "cannot be told"
            for fit in fits
        ]
        over = f"{common[0]:,} to {common[-1]:,}"
        print(f"| what the chain adds grows as length to the power (95 %), {over} | {' | '.join(powers)} |")


def told(numbers: list[float]) -> str:
    number = median(numbers)
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def release(version: str) -> str:
    """Return ``7.2.22`` of what ``-version`` prints."""
    return next((w.strip("(),") for w in version.split() if w[:1].isdigit()), "0")


def per_request(*metrics: str) -> Callable[[Sample], float | None]:
    def microseconds(sample: Sample) -> float | None:
        if any(name not in sample.metrics for name in metrics):
            return None
        return sum(sample.metrics[name] for name in metrics) / sample.metrics["requests"] * 1e6

    return microseconds


def metric(name: str, scale: float = 1.0) -> Callable[[Sample], float | None]:
    return lambda sample: None if name not in sample.metrics else sample.metrics[name] * scale


def main() -> None:
    words = [Path(word) for word in sys.argv[1:]]
    versions = ResultDirectory.open(words[0] if words else RESULTS / "versions")
    limits = ResultDirectory.open(words[1] if len(words) > 1 else RESULTS / "limits")
    reads = {"4k-strided-d1": "4 KiB read", "64k-seq-d1": "64 KiB read", "4m-seq-d1": "4 MiB read"}
    for variant, name in reads.items():
        cpu = per_request("cpu_user_s", "cpu_sys_s")
        table(versions, f"CPU time of one {name}, in microseconds", "host", variant, cpu)
    table(versions, "Wall time of one 4 KiB read, in microseconds", "host", "4k-strided-d1", per_request("wall_s"))
    table(versions, "Opening the chain, CPU time in seconds", "host", "4k-strided-d1", metric("open_cpu_s"))
    table(versions, "Opening the chain, in seconds", "host", "4k-strided-d1", metric("open_s"))
    mib = metric("peak_rss_bytes", 1 / (1 << 20))
    table(versions, "Peak memory of 4 KiB reads, in MiB", "host", "4k-strided-d1", mib)
    table(versions, "Streaming all layers, in seconds", "stream", "host", metric("wall_s"))
    for work in ("host-4k", "host-stream"):
        share = metric("share_is_inserted", 100)
        table(versions, f"Samples in bdrv_(co_)is_inserted, profile {work}, percent", "profile", work, share)
    qemus = {facts.label: release(facts.version) for facts in limits.environment().qemus}
    print(
        "\nThe longest chain:\n\n| QEMU | | layers | opened in | file descriptors | beyond |\n|---|---|---|---|---|---|"
    )
    for sample in limits.samples():
        m = sample.metrics
        opened = f"{m['open_s']:.1f} s" if "open_s" in m else ""
        files = f"{m['file_descriptors']:,.0f}" if "file_descriptors" in m else ""
        beyond = sample.detail or ""
        print(
            f"| {qemus[sample.qemu]} | {sample.variant} | {m.get('longest', 0):,.0f} | {opened} | {files} | {beyond} |"
        )


if __name__ == "__main__":
    main()
