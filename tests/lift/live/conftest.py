"""Chains, storage daemons and clients that check every byte, for the tests of live lifts."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.support.daemon import starting_daemons
from tests.support.owned_chain import OwnedChain, make_owned_chain

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def make_chain(tmp_path):
    """Return a function that writes a chain of so many layers over a base, with an empty active layer on top."""

    def make(length: int, *, directory: Path | None = None, **options) -> OwnedChain:
        return make_owned_chain(directory or tmp_path / "chain", length, **options)

    return make


@pytest.fixture
def start_daemon(tmp_path):
    """Return a function that starts a storage daemon over an image and kills it at the end."""
    with starting_daemons(tmp_path) as start:
        yield start


@pytest.fixture
def same_bytes():
    """Return a function that asserts, by stock qemu-img, that two images read the same (even while open)."""

    def check(first: Path, second: Path) -> None:
        done = subprocess.run(
            ["qemu-img", "compare", "-U", "-f", "qcow2", "-F", "qcow2", first, second], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return check
