import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tests.support.need import missing

from chainlift.errors import InputError, QemuCrashed, QemuError
from chainlift.profiling.elf import functions, read_elf
from chainlift.profiling.perf import Address, PerfSample
from chainlift.profiling.stacks import VCPU
from chainlift.qcow2.writer import write_image
from chainlift.qemu.binary import Qemu
from chainlift.qemu.find import find_qemu
from chainlift.qemu.profile import IS_INSERTED, name_samples, profile_workload, require_profiling
from chainlift.results.metrics import METRICS

SIZE = 1 << 30


def chain(directory, length):
    """Lay down a chain whose every read falls through to the base."""
    write_image(directory / "0.qcow2", virtual_size=SIZE, clusters=np.arange(SIZE >> 16))
    for number in range(1, length + 1):
        write_image(
            directory / f"{number}.qcow2",
            virtual_size=SIZE,
            clusters=[number],
            backing_file=f"{number - 1}.qcow2",
            backing_format="qcow2",
        )
    return directory / f"{length}.qcow2"


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    return chain(tmp_path_factory.mktemp("deep"), 150)


def long_enough(image, workload, scratch):
    """Profile until there are samples to speak of: a busy machine gives QEMU little time in a second."""
    for seconds in (1, 5, 25):
        profile = profile_workload(find_qemu("host"), image, workload, scratch=scratch, seconds=seconds)
        if profile.stacks.total > 20:
            break
    return profile


needs_perf = pytest.mark.needs("perf")


def test_what_virtual_cpus_do_is_told_from_the_block_layers_work():
    walk = (Address("[kernel]", 0, "bdrv_co_is_inserted"),)
    emulation = (Address("[unknown]", 0),)
    profile = name_samples(
        [PerfSample("CPU 0/TCG", 0.0, emulation)] * 6
        + [PerfSample("qemu-system-x86", 0.0, walk)] * 3
        + [PerfSample("qemu-system-x86", 0.0, emulation)]
    )
    assert {stack[0] for stack, count in profile.stacks.counts.items() if count == 6} == {VCPU}
    assert profile.metrics()["samples"] == 10
    assert profile.metrics()["vcpu_share"] == 0.6
    assert profile.metrics().keys() == METRICS["profile"].keys()
    assert "vcpu_share" not in name_samples([PerfSample("qemu-img", 0.0, emulation)]).metrics()


@pytest.mark.integration
def test_a_sample_between_two_symbols_gets_no_name_of_either():
    path = Path(shutil.which("qemu-img")).resolve()
    elf = read_elf(path)
    named = functions(elf, ".dynsym")
    gap = next(a for a, b in pairwise(named) if b.address - a.address - a.size > 64)
    offset = {elf.address_of(o): o for o in range(gap.address - 0x10000, gap.address + gap.size + 64)}
    inside, outside = offset[gap.address], offset[gap.address + gap.size + 32]
    profile = name_samples([
        PerfSample("qemu-img", 0.0, (Address(str(path), inside), Address(str(path), inside))),
        PerfSample("qemu-img", 0.0, (Address(str(path), outside),)),
    ])  # fmt: skip
    leaves = [stack[-1] for stack in profile.stacks.counts]
    if not profile.hints:
        missing("stripped", str(path))
    assert leaves[0] == gap.name
    assert leaves[1].startswith(("[qemu-img+0x", "[unknown:qemu-img]"))
    assert profile.stacks.unknown_share == 0.5
    assert "build ID" in profile.hints[0]


@needs_perf
@pytest.mark.integration
def test_a_short_read_of_a_long_chain_is_profiled_and_shows_what_the_experiment_showed(deep, tmp_path):
    profile = long_enough(deep, "read-4k", tmp_path)
    assert profile.stacks.total > 20
    assert profile.share_is_inserted > 0.2
    assert profile.metrics()["share_is_inserted"] == profile.share_is_inserted
    assert any(frame in IS_INSERTED for stack in profile.stacks.counts for frame in stack)
    # What opens the chain was not to be recorded.
    assert profile.stacks.share_of("bdrv_open_inherit", "bdrv_open", "qcow2_open") < 0.1
    assert not list(tmp_path.iterdir())


@needs_perf
@pytest.mark.integration
def test_a_stream_is_profiled_and_the_chain_stays_as_it_was(deep, tmp_path):
    before = deep.read_bytes()
    profile = long_enough(deep, "stream", tmp_path)
    assert profile.share_is_inserted > 0  # how much of it, a sample of a second does not tell for certain
    assert deep.read_bytes() == before
    assert not list(tmp_path.iterdir())


@needs_perf
@pytest.mark.integration
def test_an_image_that_does_not_open_says_what_qemu_said(tmp_path):
    image = tmp_path / "x.qcow2"
    write_image(image, virtual_size=SIZE, backing_file="gone.qcow2", backing_format="qcow2")
    with pytest.raises(QemuError, match=r"gone\.qcow2"):
        profile_workload(find_qemu("host"), image, "read-4k", scratch=tmp_path)
    with pytest.raises(QemuError, match=r"gone\.qcow2"):
        profile_workload(find_qemu("host"), image, "stream", scratch=tmp_path)


@needs_perf
@pytest.mark.integration
def test_a_qemu_that_dies_of_the_work_is_a_crash(tmp_path):
    program = tmp_path / "qemu-img"
    program.write_text("#!/bin/sh\necho Sending\nkill -SEGV $$\n")
    program.chmod(0o755)
    qemu = Qemu("fake", program, program, program, program, (9, 0, 0), "9.0.0", "path")
    with pytest.raises(QemuCrashed, match="SIGSEGV") as caught:
        profile_workload(qemu, tmp_path / "x.qcow2", "read-4k", scratch=tmp_path, seconds=1)
    assert caught.value.signal == 11


@needs_perf
def test_a_qemu_of_another_architecture_is_refused(tmp_path):
    program = tmp_path / "qemu-img"
    program.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\x16\x00" + bytes(44))
    qemu = Qemu("fake", program, program, program, program, (9, 0, 0), "9.0.0", "path")
    with pytest.raises(InputError, match="built for s390x"):
        require_profiling(qemu)
