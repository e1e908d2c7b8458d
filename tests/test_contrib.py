"""What lies in contrib/ is what it is taken for."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tests.support import confined
from tests.support.daemon import starting_daemons
from tests.support.domain import Machine
from tests.support.libvirt import running_libvirtd
from tests.support.owned_chain import make_owned_chain
from tests.support.running import Running
from tests.support.stock import img, read
from tests.support.thinned import hourly_chain

PRUNE = Path(__file__).parents[1] / "contrib" / "chainlift-prune@.service"
PRUNE_ALL = PRUNE.with_name("chainlift-prune-all.service")
UNIT = Path(__file__).parents[1] / "contrib" / "chainlift-watch.service"
LIBVIRT = UNIT.with_name("chainlift-watch.service.d") / "libvirt.conf"


@pytest.mark.needs("systemd")
@pytest.mark.parametrize("service", [PRUNE, PRUNE_ALL], ids=lambda service: service.name)
def test_systemd_finds_nothing_wrong_with_the_timer_that_prunes(tmp_path, service):
    for path in (service, service.with_suffix(".timer")):
        text = path.read_text().replace("/usr/local/bin/chainlift", shutil.which("true"))
        (tmp_path / path.name.replace("@", "@vm7")).write_text(text)
    units = sorted(tmp_path.iterdir())
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "chainlift" in line]) == (0, [])


def words_of(service):
    """What a unit tells chainlift."""
    text = service.read_text().replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    program, *words = line.removeprefix("ExecStart=").split()
    assert Path(program).name == "chainlift"
    return words


def test_the_timer_for_all_prunes_under_every_vm_with_a_socket(tmp_path):
    layers = hourly_chain(tmp_path / "c", 8)
    for number, path in enumerate(layers[1:-1]):
        path.rename(path.with_name(f"auto-{number}.qcow2"))
    names = [layers[0], *(layers[0].with_name(f"auto-{number}.qcow2") for number in range(len(layers) - 2)), layers[-1]]
    for above, below in zip(names[1:], names[:-1], strict=True):
        img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", below.name, above)
        os.utime(above, (names.index(above) * 60, names.index(above) * 60))
    before = read(names[-1])
    (tmp_path / "run").mkdir()
    with Running(names[-1]) as running:
        (tmp_path / "run/vm7").symlink_to(running.qmp_path)
        words = words_of(PRUNE_ALL)
        assert words[-4] == "--status"
        words = [*words[:-4], "--state", tmp_path]
        words[words.index("--dir") + 1] = tmp_path / "run"
        # All within an hour of one day: less is kept for this.
        words[words.index("--prune") + 1] = words[words.index("--prune") + 1].replace("last=24", "last=2")
        done = subprocess.run(["chainlift", *map(str, words)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (disk,) = json.loads(done.stdout)["disks"]
        # The oldest is kept where a rule has not found its number.
        assert (disk["deleted"], disk["length"]) == (4, 4)
    assert read(names[-1]) == before


def test_the_timer_calls_prune_with_options_that_do_what_it_says(tmp_path):
    words = words_of(PRUNE)
    layers = hourly_chain(tmp_path / "c", 6)
    with Running(layers[-1]) as running:
        words = [word.replace("/run/chainlift-qmp/%i", str(running.qmp_path)) for word in words]
        done = subprocess.run(["chainlift", *words, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [row["why"] for row in json.loads(done.stdout)["layers"]][1:-1] == ["its name is not auto-*"] * 5


@pytest.mark.needs("systemd")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path):
    (tmp_path / LIBVIRT.parent.name).mkdir()
    for number, part in enumerate((UNIT, LIBVIRT)):
        # It also looks whether the program is there.
        text = part.read_text().replace("/usr/local/bin/chainlift", shutil.which("true"))
        assert shutil.which("true") in text
        (tmp_path / (part.name if number == 0 else f"{LIBVIRT.parent.name}/{part.name}")).write_text(text)
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", tmp_path / UNIT.name], capture_output=True, text=True
        )
        assert (done.returncode, [line for line in done.stderr.splitlines() if UNIT.name in line]) == (0, [])


@pytest.mark.parametrize("part", [UNIT, LIBVIRT], ids=lambda part: part.name)
def test_the_unit_calls_watch_with_options_that_it_has(part):
    from click.testing import CliRunner

    from chainlift.cli.watch import command

    text = part.read_text().replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith("ExecStart=/")]
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


@pytest.mark.integration
@pytest.mark.needs("systemd", "root", "libvirt")
def test_a_watch_over_domains_does_its_work_under_the_unit_s_confinement(tmp_path):
    with running_libvirtd() as place, Machine(place, 4) as machine:
        before = machine.content()
        uri = os.environ["LIBVIRT_DEFAULT_URI"]
        watch = [sys.executable, "-m", "chainlift", "watch", "--libvirt", uri, "--max-length", "3", "--once"]
        done = subprocess.run(
            [sys.executable, confined.__file__, UNIT, *watch, "--status", tmp_path / "status"],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "squash: squashed" in done.stderr
        assert len(machine.chain) == 3
        owner = machine.files[0].stat()
        assert {(path.stat().st_uid, path.stat().st_gid) for path in machine.chain} == {(owner.st_uid, owner.st_gid)}
        assert machine.content() == before


def test_the_unit_is_what_watch_wants_of_systemd():
    assert confined.setting(UNIT, "Type") == ["notify"]
    assert confined.setting(UNIT, "RestartPreventExitStatus") == ["2"]
    # SIGTERM goes to the watch alone: what it runs is ended by it, in order.
    assert confined.setting(UNIT, "KillMode") == ["mixed"]
    assert int(*confined.setting(UNIT, "TimeoutStopSec")) > 120  # as long as QEMU may take for an answer
