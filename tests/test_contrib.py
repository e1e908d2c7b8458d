"""What lies in contrib/ is what it is taken for."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tests.support import confined
from tests.support.daemon import starting_daemons
from tests.support.owned_chain import make_owned_chain

UNIT = Path(__file__).parents[1] / "contrib" / "chainlift-watch.service"


@pytest.mark.needs("systemd")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path):
    # It also looks whether the program is there.
    text = UNIT.read_text().replace("/usr/local/bin/chainlift", shutil.which("true"))
    assert shutil.which("true") in text
    (tmp_path / UNIT.name).write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", tmp_path / UNIT.name], capture_output=True, text=True)
    assert (done.returncode, [line for line in done.stderr.splitlines() if UNIT.name in line]) == (0, [])


def test_the_unit_calls_watch_with_options_that_it_has():
    from click.testing import CliRunner

    from chainlift.cli.watch import command

    text = UNIT.read_text().replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    program, verb, *options = line.removeprefix("ExecStart=").split()
    assert (Path(program).name, verb) == ("chainlift", "watch")
    done = CliRunner().invoke(command, [*options, "--help"])
    assert done.exit_code == 0
    known = {name for parameter in command.params for name in parameter.opts}
    assert {option for option in options if option.startswith("--")} <= known


@pytest.mark.needs("systemd")
def test_the_unit_is_hardened():
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", UNIT]
    done = subprocess.run(command, capture_output=True, text=True)
    (line,) = [line for line in done.stdout.splitlines() if "Overall exposure level" in line]
    assert float(line.partition(": ")[2].split()[0]) < 5


@pytest.fixture
def everybodys():
    with tempfile.TemporaryDirectory(prefix="chainlift-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.integration
@pytest.mark.needs("systemd", "root")
def test_a_watch_does_its_work_under_the_unit_s_confinement(tmp_path, everybodys):
    """The chain is another user's, and nobody else's to read."""
    nobody = 65534
    # Above pytest's own directory nobody else may enter.
    chain = make_owned_chain(everybodys / "chain", 6)
    for path in (chain.directory, *chain.files):
        os.chown(path, nobody, nobody)
        path.chmod(0o700 if path.is_dir() else 0o600)
    with starting_daemons(tmp_path) as start:
        daemon = start(chain.active)
        watch = [sys.executable, "-m", "chainlift", "watch", "--qmp", daemon.qmp, "--max-length", "5", "--once"]
        done = subprocess.run(
            [sys.executable, confined.__file__, UNIT, *watch, "--copy-budget", "1G", "--status", tmp_path / "status"],
            capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "index: indexed" in done.stderr
    (lift,) = chain.directory.glob("*.lift")
    assert {(path.stat().st_uid, path.stat().st_gid) for path in (lift, *lift.iterdir())} == {(nobody, nobody)}


def test_the_unit_is_what_watch_wants_of_systemd():
    assert confined.setting(UNIT, "Type") == ["notify"]
    assert confined.setting(UNIT, "RestartPreventExitStatus") == ["2"]
    # SIGTERM goes to the watch alone: what it runs is ended by it, in order.
    assert confined.setting(UNIT, "KillMode") == ["mixed"]
    assert int(*confined.setting(UNIT, "TimeoutStopSec")) > 120  # as long as QEMU may take for an answer
