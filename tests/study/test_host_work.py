"""The tests of a plan that work without a guest: profiles, streams in a storage daemon, limits."""

import pytest

from chainlift.profiling.stacks import load_stacks
from chainlift.qemu.find import find_qemu
from chainlift.results.store import ResultDirectory
from chainlift.study.build_offline import build_offline
from chainlift.study.chain_store import ChainDirectory
from chainlift.study.host_stream import HostStreamProbe
from chainlift.study.limits import LimitsProbe
from chainlift.study.plan_file import load_plan, parse_plan
from chainlift.study.probe import Setup, probes_of
from chainlift.study.profile import ProfileProbe
from chainlift.study.progress import Silent

PLAN = """
name = "small"
lengths = [1, 25]
tests = ["stream", "profile", "limits"]
stream_in = "host"
[chain]
build = "offline"
length = 25
size = "256M"
[chain.workload]
size = "64M"
[profile]
work = ["host-4k"]
lengths = [25]
seconds = 0.5
"""


@pytest.fixture
def setup(tmp_path):
    plan = parse_plan(PLAN)
    (tmp_path / "results").mkdir()
    chain = ChainDirectory(tmp_path / "chain")
    with chain.lock(exclusive=True):
        build_offline(plan.chain, chain, Silent())
    return Setup(
        plan=plan,
        qemu=find_qemu("host"),
        accelerator="tcg",
        kind=None,
        chain=chain,
        length=25,
        lift="none",
        repeat=0,
        image=chain.layer(25),
        scratch=tmp_path,
        results=tmp_path / "results",
        progress=Silent(),
    )


def test_a_plan_says_what_is_profiled_and_where_streams_run():
    probes = probes_of(parse_plan(PLAN))
    assert [probe.title for probe in probes] == ["host stream", "profile host-4k", "limits"]
    assert [probe.lengths(parse_plan(PLAN)) for probe in probes] == [(1, 25), (25,), (25,)]


def test_the_shipped_plans_compare_the_same_releases():
    assert set(load_plan("versions").qemu) == set(load_plan("limits").qemu)
    assert load_plan("versions").lengths == (1, 10, 30, 100, 200, 300, 500, 1000)
    assert load_plan("limits").chain.length == 2000


@pytest.mark.integration
def test_a_stream_in_a_storage_daemon_is_timed_and_leaves_the_chain_alone(setup):
    before = setup.image.read_bytes()
    (reading,) = HostStreamProbe().measure(setup)
    assert (reading.test, reading.variant, reading.outcome) == ("stream", "host", "ok")
    assert reading.metrics["bytes"] == 256 << 20
    assert reading.metrics["wall_s"] > 0
    assert reading.metrics["peak_rss_bytes"] > 5 << 20
    assert setup.image.read_bytes() == before


@pytest.mark.integration
@pytest.mark.needs("perf")
def test_a_profile_keeps_its_stacks_beside_the_samples(setup):
    (reading,) = ProfileProbe("host-4k").measure(setup)
    assert reading.outcome == "ok"
    stacks = load_stacks(setup.results / "profiles/host-4k--host--25-layers.folded.gz")
    assert stacks.total == reading.metrics["samples"] > 5
    assert 0 < reading.metrics["share_is_inserted"] < 1


@pytest.mark.integration
def test_a_study_goes_on_without_perf_and_says_so(setup, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    (reading,) = ProfileProbe("host-4k").measure(setup)
    assert reading.outcome == "failed"
    assert "linux-perf" in reading.detail


@pytest.mark.integration
def test_limits_are_looked_for_up_to_the_chains_length(setup):
    read, opened = LimitsProbe().measure(setup)
    assert (read.variant, opened.variant) == ("read", "open")
    assert opened.metrics["longest"] == read.metrics["longest"] == 25
    assert opened.metrics["file_descriptors"] > 25
    assert read.detail == "read works at every length that was tried"
    attempts = ResultDirectory(setup.results).attempts()
    assert [found.length for found in attempts] == [13, 19, 22, 24, 25]
    assert all(found.open_s > 0 and found.signal is None for found in attempts)
    # A study that was interrupted does not try them again.
    again = list(LimitsProbe().measure(setup))
    assert [reading.metrics for reading in again] == [read.metrics, opened.metrics]
    assert ResultDirectory(setup.results).attempts() == attempts
