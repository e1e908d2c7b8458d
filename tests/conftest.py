import os
import signal

import pytest
from hypothesis import HealthCheck, settings
from tests.support import need, releases

from chainlift.host import priority
from chainlift.qemu.find import find_qemu

# A shell starts background jobs with SIGINT ignored, and children inherit that: tests of Ctrl-C need the default.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Under nohup they would inherit that SIGHUP is ignored; what has a handler here is as it was by default for them.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

# How long an example takes is the machine's affair, and what else runs on it.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

QEMUS = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests marked `long` too")
    parser.addoption(
        "--qemu",
        action="append",
        default=[],
        metavar="SPEC",
        help="run tests that take a release of QEMU on this one (host, debian:SUITE); default: all that are there",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[QEMUS] = releases.chosen(config.getoption("--qemu"))
    # Or xdist begins with the files of most tests, and ends with one that has a few which take minutes.
    config.option.loadscopereorder = False


def pytest_report_header(config: pytest.Config) -> list[str]:
    there = config.stash[QEMUS]
    lines = [f"{qemu.label} {qemu.version_text}" for qemu in there]
    lines += [f"{spec} is not there" for spec in config.getoption("--qemu") if spec not in {q.label for q in there}]
    left_out = [name for name in need.NEEDS if need.is_left_out([name])]
    return [
        f"QEMU: {', '.join(lines) or 'none'}",
        *([f"left out, for this user is not root: the tests that want {' or '.join(left_out)}"] if left_out else []),
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    releases.parametrize(metafunc, metafunc.config.stash[QEMUS])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    unwanted = [releases.NONE.name, *([] if config.getoption("--long") else ["long"])]
    left_out = [item for item in items if any(map(item.get_closest_marker, unwanted))]
    left_out += [item for item in items if need.is_left_out(wanted_by(item))]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        kept = set(items) - set(left_out)
        items[:] = [item for item in items if item in kept]
    # What takes longest begins first, so that no worker is alone with it at the end.
    items.sort(key=lambda item: item.get_closest_marker("no_cover") is None)


def wanted_by(item: pytest.Item) -> list[str]:
    return [name for mark in item.iter_markers("needs") for name in mark.args]


def pytest_runtest_setup(item: pytest.Item) -> None:
    need.check(wanted_by(item))


@pytest.fixture(scope="session", autouse=True)
def _state_directory(tmp_path_factory):
    """Let nothing that is tested write to the host's own."""
    os.environ["STATE_DIRECTORY"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session", autouse=True)
def _own_priority():
    """Verbs that are run in this process would leave all later tests the last in the queue for a processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(priority, "lower_priority", lambda: None)
        yield


@pytest.fixture(autouse=True)
def _uncovered_children(request, monkeypatch):
    """What ``no_cover`` says of a test holds for the commands that it runs, too; ``interrupts`` is about those alone.

    Who is measured runs functions of coverage's own in Python. A signal that is raised in the one that takes its lock
    leaves it locked, and the next new module waits for it for ever.
    """
    if any(map(request.node.get_closest_marker, ("no_cover", "interrupts"))):
        monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


@pytest.fixture(scope="session")
def any_qemu(request):
    """Each QEMU that is there: the host's, and the releases that `chainlift qemu add` has unpacked."""
    return find_qemu(request.param, need=["img", "io", "storage-daemon"])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have counted, also those that other workers ran."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if getattr(report, "when", "") == "call":
                    terminalreporter.section(name)
                    terminalreporter.line(str(value))
