"""Random chains with branches, thinned out at random: every image that is left reads as stock QEMU read it before."""

import os
import random
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from tests.support.chain_machine import ChainMachine, run_machine, sizes
from tests.support.thinned import keep_layers

from chainlift.errors import InputError
from chainlift.qemu.find import find_qemu

pytestmark = [pytest.mark.integration, pytest.mark.no_cover]


class ThinnedMachine(ChainMachine):
    """Thins the chain out that was built, twice, and once from a branch of it."""

    def __init__(self):
        super().__init__()
        self.branches = []
        self.chances = random.Random(0)
        self.gone = 0

    @precondition(lambda self: self.layers)
    @rule(below=st.integers(0, 5), size=sizes, sector=st.integers(0, 2000))
    def branch(self, below, size, sector):
        name, backing_format = self.layers[below % len(self.layers)]
        new = f"branch{len(self.branches)}"
        done = self.run_tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", name, "-F", backing_format, new, size)
        if done.returncode == 0:
            self.run_tool("qemu-io", "-f", "qcow2", "-c", f"write -P 77 {sector * 512} 70k", new)
            self.branches.append(new)

    @rule(seed=st.integers(0, 1 << 30))
    def choose(self, seed):
        self.chances = random.Random(seed)

    def compare(self):
        before = Path.cwd()
        os.chdir(self.directory)  # data files are named relative to it
        try:
            while len(self.layers) < 6:
                self.grow()
            self.thin_out()
        finally:
            os.chdir(before)

    def grow(self):
        """Put one more layer on top: chains that hypothesis builds are short."""
        name, backing_format = self.top
        new, cluster = f"grown{len(self.layers)}", self.chances.choice(["4k", "64k", "64k", "128k"])
        self.run_tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", name, "-F", backing_format,
                      "-o", f"cluster_size={cluster}", new, "4M", check=True)  # fmt: skip
        for _ in range(self.chances.randrange(4)):
            offset, length = self.chances.randrange(4 << 20), self.chances.randrange(1, 300_000)
            what = self.chances.choice(["write -P 5", "write -P 6", "write -z"])
            command = f"{what} {offset // 512 * 512} {min(length, (4 << 20) - offset) // 512 * 512}"
            self.run_tool("qemu-io", "-f", "qcow2", "-c", command, new, check=True)
        self.layers.append((new, "qcow2"))

    def thin_out(self):
        names = [*(name for name, image_format in self.layers if image_format == "qcow2"), *self.branches]
        wanted = {name: self.read(name) for name in names}
        qemu = find_qemu("host", need=["img", "storage-daemon"])
        deleted = set()
        for image in (self.top[0], self.top[0], *self.branches[:1]):
            inner = [name for name, _ in self.layers[1:-1] if Path(name).exists()]
            kept = [Path(name) for name in inner if self.chances.random() < 0.4]
            try:
                done = keep_layers(Path(image), qemu, self.layers[0][0], *kept)
            except InputError as error:
                # A branch of a lower layer does not stand on those above; a json: name is no plain one.
                assert any(text in str(error) for text in ("is no layer", "overrides")), (error, self.log)
                continue
            self.log.append(f"kept {kept} of {inner} under {image}, deleted {done.deleted}")
            self.gone += len(done.deleted)
            deleted.update(path.name for path in done.deleted)
            assert done.left == {}, (done.left, self.log)
            for name, content in wanted.items():
                if Path(name).exists():
                    assert self.read(name) == content, (name, self.log)
                else:
                    assert name in deleted, (name, self.log)
            assert not deleted & {image, self.layers[0][0], *map(str, kept), *self.branches}, self.log
            for path in done.rewritten:
                checked = self.run_tool("qemu-img", "check", path)
                assert checked.returncode == 0, (path, checked.stdout, self.log)
        assert list(self.directory.glob("*.prune*")) == []

    def read(self, name):
        self.run_tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", name, "whole.raw", check=True)
        return Path("whole.raw").read_bytes()


@pytest.mark.timeout(900)
def test_a_few_random_chains_with_branches_are_thinned_out():
    gone = []

    class Counted(ThinnedMachine):
        def teardown(self):
            super().teardown()
            gone.append(self.gone)

    run_machine(Counted, 5)
    assert sum(gone) > 0


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_many_random_chains_with_branches_are_thinned_out():
    run_machine(ThinnedMachine, 500)
