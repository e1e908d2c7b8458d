"""What lies in contrib/ is what it is taken for."""

import shutil
import subprocess
from pathlib import Path

import pytest

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
