import os
import shutil
import subprocess
from pathlib import Path

import pytest

from chainlift.qemu.find import find_qemu


@pytest.fixture(scope="session")
def host_qemu():
    return find_qemu("host", need=["img", "io"])


@pytest.fixture
def tool():
    """Runs one of a QEMU's tools; returns exit status and everything it said."""

    def run(qemu, name, *arguments):
        command = qemu.command(name, *map(str, arguments))
        environment = {**os.environ, **qemu.environment}
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.fixture
def same(tool, host_qemu):
    """Whether two images read the same through stock QEMU."""

    def compare(one, other, qemu=None):
        status, said = tool(qemu or host_qemu, "img", "compare", one, other)
        assert status in (0, 1), said
        return status == 0

    return compare


@pytest.fixture
def reference(tool, host_qemu):
    """Makes a raw copy of what QEMU reads."""

    def copy(image, to):
        status, said = tool(host_qemu, "img", "convert", "-O", "raw", image, to)
        assert status == 0, said
        return to

    return copy


def file_contents(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


@pytest.fixture
def contents():
    return file_contents


@pytest.fixture
def fresh(tmp_path):
    """A directory that is made anew from a template: for a fault at each of many points."""

    def make(template: Path) -> Path:
        target = tmp_path / "work"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(template, target)
        return target

    return make
