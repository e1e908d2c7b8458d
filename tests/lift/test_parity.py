"""Each lift of the random chains of tests/support/chain_machine.py reads as stock QEMU reads the chain."""

import os
from pathlib import Path

import pytest
from tests.support.chain_machine import ChainMachine, run_machine
from tests.support.lifts import lift_index, lift_squash, restore_lift, verify_lift

from chainlift.chain import open_chain
from chainlift.errors import ImageError
from chainlift.lift.flatten import flatten
from chainlift.qcow2.writer import write_image
from chainlift.qemu.find import find_qemu

pytestmark = [pytest.mark.integration, pytest.mark.no_cover]


class LiftMachine(ChainMachine):
    """Lifts the chain that was built, in every way."""

    def compare(self):
        name, backing_format = self.top
        # Data files are named relative to the working directory.
        before = Path.cwd()
        os.chdir(self.directory)
        try:
            with open_chain(name, format=backing_format) as chain:
                size = -(-chain.virtual_size // 512) * 512
            write_image("active.qcow2", virtual_size=size, backing_file=name, backing_format=backing_format)
            self.lift(Path("active.qcow2").absolute())
        finally:
            os.chdir(before)

    def lift(self, image):
        qemu = find_qemu("host", need=["img"])
        self.run_tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, "whole.raw", check=True)
        layers = {path: path.read_bytes() for path in self.directory.iterdir() if path.is_file() and path != image}
        for budget in (0, 1 << 18):
            manifest = lift_index(image, qemu, copy_budget_bytes=budget, drop_bitmaps=True)
            self.check(image, manifest.lifted.name)
        restore_lift(image, qemu, clean=True)
        try:
            manifest, _ = lift_squash(image, qemu)
        except ImageError as error:
            if "cannot be carried over" in str(error):  # a bitmap that is older than a resize
                manifest, _ = lift_squash(image, qemu, drop_bitmaps=True)
            else:
                assert "nothing between" in str(error)
                manifest = None
        if manifest is not None:
            self.check(image, manifest.files[0].path)
            restore_lift(image, qemu, clean=True)
        for out, how in (("flat.qcow2", {}), ("flat.raw", {"file_format": "raw"}), ("small", {"compress": "zstd"})):
            flatten(image, Path(out), **how)
            done = self.run_tool("qemu-img", "compare", "-f", "raw", "whole.raw", out)
            assert done.returncode == 0, (done.stdout + done.stderr, self.log)
        for path, data in layers.items():
            assert path.read_bytes() == data, f"{path} changed: {self.log}"

    def check(self, image, lifted):
        done = self.run_tool("qemu-img", "compare", "-F", "raw", image, "whole.raw")
        assert done.returncode == 0, (done.stdout + done.stderr, self.log)
        done = self.run_tool("qemu-img", "check", lifted)
        assert done.returncode == 0, (done.stdout + done.stderr, self.log)
        assert verify_lift(image, content=True)[1] == [], self.log


@pytest.mark.timeout(900)
def test_a_few_random_chains_lifted_in_every_way():
    run_machine(LiftMachine, 8)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_many_random_chains_lifted_in_every_way():
    run_machine(LiftMachine, 400)
