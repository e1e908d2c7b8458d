"""The experiment's published values, which are drawn beside what was measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Published:
    """Values of the experiment by chain length, in our units."""

    read_s: dict[int, float]
    stream_s: dict[int, float]
    stream_peak_rss_bytes: dict[int, float]
    boot_extra_bytes: dict[int, float]
    boot_read_extra_bytes: dict[int, float]
    mean_snapshot_bytes: float
    inserted_share: dict[str, dict[int, float]]
    disk_bytes: int
    host: str


@cache
def published() -> Published:
    """Return what the experiment published (``reference.json`` in this package)."""
    text = files("chainlift.report").joinpath("reference.json").read_text(encoding="utf-8")
    data = json.loads(text)
    shares = data["profile"]["share_of_samples_percent"]
    memory = data["memory"]
    return Published(
        read_s=_by_length(data["read"]["seconds"]),
        stream_s=_by_length(data["stream"]["seconds"]),
        stream_peak_rss_bytes=_by_length(data["stream"]["peak_rss_mb"], MEGABYTE),
        boot_extra_bytes=_by_length(memory["boot_halt_extra_mb_over_1"], MEGABYTE),
        boot_read_extra_bytes=_by_length(memory["boot_read_halt_extra_mb_over_1"], MEGABYTE),
        mean_snapshot_bytes=data["chain"]["mean_snapshot_mb"] * MEGABYTE,
        inserted_share={test: _by_length(by_length, 0.01) for test, by_length in shares.items()},
        disk_bytes=20 << 30,
        host=f"{data['guest']['os']}, {data['host']['accelerator'].upper()}, QEMU {data['host']['qemu'].split()[0]}",
    )


def _by_length(values: dict[str, float], scale: float = 1) -> dict[int, float]:
    return {int(length): value * scale for length, value in values.items()}
