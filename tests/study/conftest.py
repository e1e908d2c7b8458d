import pytest
from tests.support.study import LIVE, Command, WatchedBuilder

from chainlift.guest.micro import MicroGuest
from chainlift.qemu.find import find_qemu
from chainlift.study.build import Bench
from chainlift.study.plan_file import parse_plan
from chainlift.study.progress import Silent


@pytest.fixture(scope="session")
def live_plan(tmp_path_factory):
    return parse_plan(LIVE.format(chains=tmp_path_factory.mktemp("chains")))


@pytest.fixture(scope="session")
def live_chain(live_plan):
    """A chain of five snapshots that the micro guest was writing to, with ``seen-N.raw`` beside its layers."""
    bench = Bench.find(live_plan)
    with bench.chain.lock(exclusive=True):
        WatchedBuilder(live_plan, bench.chain, MicroGuest(), find_qemu(), "tcg", Silent()).build()
    return bench.chain


@pytest.fixture
def command():
    started = []

    def start(*arguments, marker):
        started.append(Command(*arguments, marker=marker))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
