"""The week with snapshots in README.md, each command as it is there."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.support.running import connected
from tests.support.sessions import replaced
from tests.support.stock import create, read, write

pytestmark = pytest.mark.integration

README = Path(__file__).parents[2] / "README.md"
#: When the page's snapshots were taken.
TAKEN = [(day, hour) for day, hours in ((23, (21, 22, 23)), (24, (21, 22, 23)), (25, range(10))) for hour in hours]
FSTAB = b"/dev/vda / ext4\n"
TUESDAY = "auto-2026-11-24-22.qcow2"


def week():
    text = README.read_text()
    block = text[text.index("## A week with snapshots") :].partition("```console\n")[2].partition("```")[0]
    return [line.removeprefix("$ ") for line in block.splitlines()]


def layer_name(day, hour):
    return f"auto-2026-11-{day}-{hour:02}.qcow2"


@pytest.fixture
def vm7(tmp_path):
    """A VM whose disk has a snapshot an hour of some days, and another one; its images, and a monitor."""
    images, root = tmp_path / "vm7", tmp_path / "root"
    images.mkdir()
    (root / "etc").mkdir(parents=True)
    (root / "etc/fstab").write_bytes(FSTAB)
    raw = tmp_path / "raw"
    subprocess.run(["/usr/sbin/mke2fs", "-q", "-t", "ext4", "-d", root, raw, "16M"], check=True)
    below = images / "base.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, below], check=True)
    # In what the file system does not use: nobody minds what is there.
    for number, (day, hour) in enumerate(TAKEN):
        path = create(images / layer_name(day, hour), below, named=str(below))
        write(path, number + 1, (12 << 20) + (number << 16), "64k")
        below = path
    for name in ("before-upgrade.qcow2", "disk.qcow2"):
        below = create(images / name, below, named=str(below))
    for day, hour in TAKEN:
        taken_s = time.mktime((2026, 11, day, hour, 0, 0, 0, 0, -1))
        os.utime(images / layer_name(day, hour), (taken_s, taken_s))
    argv = ["qemu-system-x86_64", "-S", "-nodefaults", "-display", "none", "-m", "16"]
    for name in ("qmp", "own"):
        argv += ["-qmp", f"unix:{tmp_path}/{name},server=on,wait=off"]
    argv += ["-drive", f"file={below},if=none,id=hd0,format=qcow2", "-device", "virtio-blk-pci,drive=hd0"]
    with subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", *argv]) as process:
        try:
            yield images, connected(tmp_path / "own", process)
        finally:
            process.kill()


def test_the_week_can_be_lived(vm7, tmp_path):
    images, own = vm7
    before, then = read(images / "before-upgrade.qcow2"), read(images / TUESDAY)
    socket, programs = tmp_path / "tuesday.sock", tmp_path / "bin"
    programs.mkdir()
    (programs / "chainlift").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m chainlift "$@"\n')
    (programs / "chainlift").chmod(0o755)
    # Where a command fails, what is served must not go on: it would keep the pipes open.
    lines = ["set -e", "trap 'kill $(jobs -p)' EXIT"]
    ours = {"/srv/vm7": str(images), "/run/vm7.qmp": str(tmp_path / "qmp"), "/run/tuesday.sock": str(socket)}
    for line in week():
        lines.append(replaced(line, ours))
        if "&  " in line:  # a person would wait for what it says
            served = f"qemu-img info 'nbd+unix:///?socket={socket}' >info 2>&1"
            lines.append(f"served=$!; until {served}; do kill -0 $served; sleep 0.1; done")
    lines.append("kill $served; wait $served; trap - EXIT")
    environment = {
        **os.environ,
        "COLUMNS": "200",
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin",
    }
    done = subprocess.run(
        ["bash"], input="\n".join(lines), text=True, capture_output=True, cwd=tmp_path, env=environment, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "fstab").read_bytes() == FSTAB
    gone = [(day, hour) for day, hour in TAKEN if not (images / layer_name(day, hour)).exists()]
    assert gone == [(23, 22), (24, 21)]
    assert not (images / "before-upgrade.qcow2").exists()
    assert read(images / TUESDAY) == then
    active = next(each["inserted"]["file"] for each in own.execute("query-block") if each["device"] == "hd0")
    copy = tmp_path / "copy.raw"
    subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", active, copy], check=True)
    assert copy.read_bytes() == before
