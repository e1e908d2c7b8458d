import pytest

from chainlift.lift.live.session import read_pointer
from chainlift.lift.live.watch import WatchStatus, as_json, as_prometheus, watch_round

pytestmark = pytest.mark.integration


def test_a_chain_is_indexed_when_it_is_too_long_and_not_before(make_chain, start_daemon):
    chain = make_chain(10)
    daemon = start_daemon(chain.active)
    status = WatchStatus()
    watch_round(status, [daemon.qmp], max_length=10)
    assert status.disks[str(chain.active)].length == 10
    assert status.disks[str(chain.active)].indexed == 0
    watch_round(status, [daemon.qmp], max_length=9)
    disk = status.disks[str(chain.active)]
    assert (disk.length, disk.indexed, disk.error) == (1, 1, None)
    assert read_pointer(chain.active).startswith("json:")
    watch_round(status, [daemon.qmp], max_length=9)
    assert disk.indexed == 1
    assert f'chainlift_chain_length{{image="{chain.active}"}} 1' in as_prometheus(status)


def test_a_disk_that_cannot_be_indexed_and_a_dead_socket_do_not_stop_the_others(make_chain, start_daemon, tmp_path):
    busy, well = make_chain(4, directory=tmp_path / "busy"), make_chain(5, directory=tmp_path / "well")
    first, second = start_daemon(busy.active), start_daemon(well.active)
    first.monitor.execute("block-stream", device="disk0", job_id="job0", speed=1)
    status = WatchStatus()
    watch_round(status, [tmp_path / "nobody", first.qmp, second.qmp], max_length=2)
    assert "block job job0" in status.disks[str(busy.active)].error
    assert status.disks[str(well.active)].indexed == 1
    assert [silent["socket"] for silent in as_json(status)["silent"]] == [str(tmp_path / "nobody")]
    assert "chainlift_silent_sockets 1" in as_prometheus(status)
