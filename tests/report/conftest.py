"""Recorded results, and results made up of a few samples where a test is about what is missing."""

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from chainlift.report import write_report
from chainlift.results.model import ChainShape, Environment, QemuFacts, Sample
from chainlift.results.store import ResultDirectory

RECORDED = Path(__file__).parent / "recorded"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A copy of results that were measured, to be drawn into."""
    return shutil.copytree(RECORDED / "by-hand", tmp_path / "by-hand")


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded results with their report, drawn once for the tests that only look at it."""
    copy = shutil.copytree(RECORDED / "by-hand", tmp_path_factory.mktemp("drawn") / "by-hand")
    write_report([copy])
    return copy


Maker = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    """Make a result directory of the samples given."""

    def maker(*samples: Sample, name: str = "run", environment: bool = True, **more: object) -> Path:
        directory = ResultDirectory.create(tmp_path / name, str(more.get("plan", 'tests = ["host"]\n')))
        if environment:
            directory.write_environment(make_environment(**{k: v for k, v in more.items() if k != "plan"}))
        directory.write_chain(
            ChainShape(
                built="offline", virtual_size_bytes=1 << 30, cluster_size_bytes=65536, layer_bytes=[1 << 28, 5_000_000]
            )
        )
        for one in samples:
            directory.append(one)
        return directory.path

    return maker


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
