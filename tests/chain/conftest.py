import subprocess
from pathlib import Path

import pytest


@pytest.fixture
def qemu_img():
    def run(*arguments: object) -> str:
        done = subprocess.run(["qemu-img", *map(str, arguments)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture
def guest_view(qemu_img, tmp_path):
    """What QEMU reads."""

    def convert(path: Path) -> bytes:
        raw = tmp_path / "converted.raw"
        qemu_img("convert", "-O", "raw", path, raw)
        content = raw.read_bytes()
        raw.unlink()
        return content

    return convert
