"""Recorded results, and results made up of a few samples where a test is about what is missing."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.results import RECORDED, make_environment

from chainlift.report import write_report
from chainlift.results.model import ChainShape, Sample
from chainlift.results.store import ResultDirectory


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
