"""Bugs of QEMU that chainlift refuses or goes round, each shown by stock QEMU alone.

A test that fails here says that QEMU is better than we think: it names what can be taken out of chainlift then, or
allowed from that release on. A test that did not end in its bug would be no news to a person who lifts a chain.
"""

import signal

import pytest
from tests.support.daemon import starting_daemons
from tests.support.owned_chain import make_owned_chain

from chainlift.errors import QemuCrashed
from chainlift.qcow2.writer import write_image
from chainlift.qemu.limits import attempt_length, crash_place

pytestmark = pytest.mark.integration
SIZE = 64 << 20


def fixed(qemu, what):
    """Fail with the news."""
    pytest.fail(f"fixed in QEMU {qemu.version_text}: {what}", pytrace=False)


@pytest.mark.qemu(since=(9, 0))
def test_block_stream_of_a_node_that_an_export_in_an_iothread_uses_ends_qemu(tmp_path, any_qemu):
    chain = make_owned_chain(tmp_path / "chain", 4)
    with starting_daemons(tmp_path) as start:
        daemon = start(chain.active, qemu=any_qemu.label, export=",iothread=io0", extra=("--object", "iothread,id=io0"))
        try:
            daemon.monitor.execute("block-stream", {"job-id": "job0", "device": "disk0"})
        except QemuCrashed as error:
            assert "bdrv_insert_node" in str(error)
            return
    fixed(any_qemu, "lift/live/stream.py need not refuse an export in an iothread without fixed-iothread=on")


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.needs("root", "perf")
def test_a_read_through_a_long_chain_overflows_a_coroutines_stack(tmp_path, any_qemu):
    write_image(tmp_path / "0.qcow2", virtual_size=SIZE, clusters=range(16))
    for number in range(1, 1201):
        backing = {"backing_file": f"{number - 1}.qcow2", "backing_format": "qcow2"}
        write_image(tmp_path / f"{number}.qcow2", virtual_size=SIZE, **backing)
    image = tmp_path / "1200.qcow2"
    attempt = attempt_length(any_qemu, image, 1200, SIZE)
    assert attempt.opens
    if attempt.reads:
        fixed(any_qemu, "it reads 1,200 layers; docs/upstream.md and the limits that plans try can say so")
    assert attempt.signal == signal.SIGSEGV
    assert "bdrv_" in crash_place(any_qemu, image, SIZE)
