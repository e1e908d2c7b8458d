"""``--log FILE`` and ``-v``: what was done can be read from them, and nothing else changes."""

import re
import subprocess
import sys

import pytest
from tests.support.running import Running

from chainlift.qcow2.writer import write_image

_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d \d+ (DEBUG|INFO|ERROR) chainlift[.a-z]*: .+")


def chainlift(*words):
    return subprocess.run([sys.executable, "-m", "chainlift", *map(str, words)], capture_output=True, text=True)


@pytest.fixture
def image(tmp_path):
    below = None
    for number in range(3):
        path = tmp_path / f"layer{number}.qcow2"
        write_image(path, virtual_size=1 << 20, backing_file=below, backing_format="qcow2" if below else None,
                    clusters=[number], data=bytes([number + 1]) * 65536)  # fmt: skip
        below = path.name
    return path


def lines(log):
    # Where the coverage of these tests is measured, its file is written, too.
    found = [line for line in log.read_text().splitlines() if "/.coverage." not in line]
    assert found
    assert [line for line in found if not _LINE.fullmatch(line)] == []
    return found


@pytest.mark.integration
def test_a_lift_at_rest_can_be_read_from_the_log(tmp_path, image):
    log = tmp_path / "log"
    assert chainlift("--log", log, "index", image).returncode == 0
    said = "\n".join(lines(log))
    lift = f"{image}.lift"
    for what in (
        f"make directory {lift} (700)",
        f"rename {lift}/index-1.vmdk.new to {lift}/index-1.vmdk",
        "run /usr/bin/qemu-img rebase" if "/usr/bin/qemu-img" in said else "qemu-img rebase",
        "qemu-img ended: exit status 0 (",
        "chainlift: exit status 0",
    ):
        assert what in said, what
    assert log.stat().st_mode & 0o777 == 0o600
    assert chainlift("--log", log, "restore", image, "--clean").returncode == 0
    assert f"remove {lift}/index-1.vmdk" in log.read_text()
    assert "index" in lines(log)[0], "a log is added to"


def test_a_refusal_is_in_the_log(tmp_path):
    done = chainlift("--log", tmp_path / "log", "squash", tmp_path / "nothing.qcow2")
    assert done.returncode == 2
    last = lines(tmp_path / "log")[-1]
    assert last.endswith(f"ERROR chainlift: exit status 2: {done.stderr.removeprefix('chainlift: ').rstrip()}")


@pytest.mark.integration
def test_each_command_to_qemu_is_there_with_its_time(tmp_path, image):
    with Running(image) as running:
        assert chainlift("--log", tmp_path / "log", "index", "--qmp", running.qmp_path).returncode == 0
    found = lines(tmp_path / "log")
    assert any(re.search(r"INFO chainlift\.qmp: blockdev-reopen .* \(\d+\.\d{4} s\)$", line) for line in found)
    assert any(re.search(r"DEBUG chainlift\.qmp: query-version \(\d+\.\d{4} s\)$", line) for line in found)


def test_verbose_tells_people_on_standard_error_alone(image):
    quiet, said, all_of_it = (chainlift(*words, "inspect", "--json", image) for words in ([], ["-v"], ["-vv"]))
    assert quiet.stderr == ""
    assert quiet.stdout == said.stdout == all_of_it.stdout
    assert "chainlift: exit status 0" in said.stderr


def test_a_log_that_cannot_be_written_is_one_line(tmp_path, image):
    done = chainlift("--log", tmp_path / "no" / "log", "inspect", image)
    assert done.returncode == 3
    assert done.stderr == f"chainlift: {tmp_path}/no/log: No such file or directory\n"


def test_names_cannot_forge_a_line(tmp_path):
    chainlift("--log", tmp_path / "log", "inspect", "a\n2026-01-01T00:00:00.000+00:00 1 INFO chainlift: exit status 0")
    assert len(lines(tmp_path / "log")) == 2


@pytest.mark.integration
def test_a_verb_that_changes_is_known_as_one_behind_the_options_of_a_log(tmp_path, image):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        words = [sys.executable, "-m", "chainlift", "--log", tmp_path / "log", "index", image]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 4, done.stderr
    assert "what was asked for may be done" in done.stderr
