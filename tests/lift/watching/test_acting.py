"""One action: finished, or everything is as before, and the line that is told of it."""

from pathlib import Path

import pytest
from tests.lift.conftest import file_contents
from tests.support.daemon import read_all
from tests.support.owned_chain import everything
from tests.support.watching import rules

from chainlift.lift.watching.acting import lift_disk
from chainlift.lift.watching.looking import look_at_vm

pytestmark = pytest.mark.integration


def act(daemon, state, *, ends=lambda: False, copy_budget_bytes=None):
    (disk,) = look_at_vm(daemon.qmp, state).disks
    return lift_disk(
        daemon.qmp, disk, directory=state, is_paused=lambda mark: mark.is_paused, ends=ends,
        copy_budget_bytes=copy_budget_bytes, qemu=rules(state).qemu, timeout_s=None,
    )  # fmt: skip


@pytest.mark.parametrize("when", [0, 1, 2])
def test_an_action_is_given_up_before_the_switch_and_everything_is_as_before(make_chain, start_daemon, tmp_path, when):
    chain = make_chain(6, virtual_size=64 << 20, per_layer=100)
    daemon = start_daemon(chain.active)
    before, nodes = file_contents(chain.directory), daemon.nodes()
    asked = []

    def ends():
        asked.append(True)
        return len(asked) > when

    acted = act(daemon, tmp_path / "state", ends=ends, copy_budget_bytes=1 << 30)
    assert (acted.result, len(asked)) == ("given up", when + 1)
    assert (file_contents(chain.directory), daemon.nodes()) == (before, nodes)
    assert "vm7 vda: index: given up, the watch ends; everything is as before, length 6, " in acted.line(
        "vm7 vda", Path("/s")
    )
    with daemon.client() as client:
        assert read_all(client) == everything(chain)


def test_the_line_of_an_index_says_what_was_copied(make_chain, start_daemon, tmp_path):
    daemon = start_daemon(make_chain(6).active)
    acted = act(daemon, tmp_path / "state", copy_budget_bytes=1 << 30)
    assert acted.result == "indexed"
    assert acted.copied_bytes > 0
    line = acted.line("vm7 vda", Path("/run/vm7"))
    assert f"{acted.extents} extent, {acted.copied_bytes} bytes copied, {acted.took_s:.3f} s, longest command " in line
    # The next one removes this one, and says so.
    assert acted.lift in act(daemon, tmp_path / "state").line("vm7 vda", Path("/run/vm7")).partition("removed ")[2]


def test_what_is_refused_and_what_fails_is_told_apart(make_chain, start_daemon, tmp_path):
    chain = make_chain(6)
    daemon = start_daemon(chain.active)
    (disk,) = look_at_vm(daemon.qmp, tmp_path).disks
    daemon.monitor.execute("block-stream", device="disk0", job_id="job0", speed=1)
    refused = act(daemon, tmp_path / "state")
    assert (refused.result, refused.priority) == ("refused", 4)
    assert "index: refused, the block job job0 works on node disk0; wait until it is done, length 6" in refused.line(
        "a", "b"
    )
    daemon.process.kill()
    daemon.process.wait(60)
    failed = lift_disk(
        daemon.qmp, disk, directory=tmp_path, is_paused=lambda mark: False, ends=lambda: False,
        copy_budget_bytes=None, qemu=None, timeout_s=1,
    )  # fmt: skip
    assert (failed.result, failed.priority) == ("failed", 3)
