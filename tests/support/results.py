"""Results of a few samples, made up."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from chainlift.results.model import Environment, QemuFacts, Sample

#: Results that were measured.
RECORDED = Path(__file__).parents[1] / "report" / "recorded"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def make_environment(**more: object) -> Environment:
    facts: dict[str, object] = {
        "chainlift": "0",
        "started_at": NOW,
        "cpu": "a CPU",
        "cpus": 2,
        "memory_bytes": 1 << 33,
        "host_kernel": "6.1",
        "operating_system": "Debian",
        "cache_mode": "writeback",
        "qemus": [
            QemuFacts(label="host", binary="/usr/bin/qemu", version="7.2.22 (Debian 1:7.2)", source="host",
                      accelerator="kvm")
        ],
    }  # fmt: skip
    return Environment.model_validate({**facts, **more})


def host_read(length: int, wall_s: float, *, repeat: int = 0, **more: object) -> Sample:
    """1,000 reads of 4 KiB."""
    facts: dict[str, object] = {
        "test": "host",
        "variant": "4k-strided-d1",
        "length": length,
        "repeat": repeat,
        "started_at": NOW,
        "metrics": {"wall_s": wall_s, "requests": 1000, "bytes": 4096000, "cpu_user_s": wall_s * 0.9},
    }
    return Sample.model_validate({**facts, **more})
