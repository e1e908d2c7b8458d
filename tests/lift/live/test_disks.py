"""Which disks a QEMU has, out of what three releases answered (tests/support/recorded_qmp.py)."""

from pathlib import Path

import pytest
from tests.support.recorded_qmp import RELEASES, RecordedQmp, recorded

from chainlift.errors import InputError
from chainlift.lift.live.disks import choose_disk, describe, list_disks, list_iothreads
from chainlift.lift.live.graph import query_graph
from chainlift.lift.live.seen_process import SeenProcess
from chainlift.lift.live.session import open_session

QDEV = "/machine/peripheral/vb0/virtio-backend"


def disks_of(release, *command_line):
    monitor = RecordedQmp(recorded(release, "disks"))
    return list_disks(monitor, query_graph(monitor), SeenProcess(1, None, command_line))


@pytest.fixture(params=RELEASES)
def disks(request):
    return disks_of(request.param)


def chosen(disks, *, device=None, node=None, image=None):
    return choose_disk(disks, device=device, node=node, image=image)


def test_a_device_says_its_disk_under_the_filter_and_its_iothread(disks):
    disk = chosen(disks, device="vb0")
    assert (disk.node, disk.root, disk.users) == ("disk0", "limited", (QDEV, "vb0"))
    assert (disk.path, disk.length) == (Path("/images/a3.qcow2"), 3)
    assert (disk.iothread, disk.iothread_is_known, disk.is_pinned, disk.is_exported) == ("io0", True, True, False)
    assert str(disk) == f"node disk0 of {QDEV}, vb0: /images/a3.qcow2, length 3"
    assert describe(disk)["image"] == "/images/a3.qcow2"


def test_a_drive_of_the_old_option_is_found_by_its_id_and_its_devices(disks):
    disk = chosen(disks, device="drive1")
    assert disk == chosen(disks, device="sd0") == chosen(disks, device="/machine/peripheral/sd0")
    assert disk.node.startswith("#block")
    assert (disk.iothread, disk.iothread_is_known) == (None, True)


def test_an_export_in_an_unknown_thread_is_told_from_one_that_is_known(disks):
    disk = chosen(disks, device="exp0")
    assert (disk.node, disk.length, disk.is_exported) == ("disk2", 2, True)
    assert (disk.iothread, disk.iothread_is_known) == (None, False)
    for options, expected in (
        ("id=exp0", (None, True, False)),
        ("id=exp0,iothread=io1", ("io1", True, False)),
        ("id=exp0,iothread=io1,fixed-iothread=on", ("io1", True, True)),
    ):
        disk = chosen(disks_of(RELEASES[-1], "qsd", "--export", options), device="exp0")
        assert (disk.iothread, disk.iothread_is_known, disk.is_pinned) == expected


def test_a_disk_may_be_named_by_its_node_or_its_filter(disks):
    assert chosen(disks, node="disk0") == chosen(disks, node="limited") == chosen(disks, device="vb0")


def test_a_choice_that_is_none_names_every_disk(disks):
    with pytest.raises(InputError, match=r"several qcow2 disks; choose one .*disk2 of exp0.*drive1, sd0.*vb0"):
        chosen(disks)
    with pytest.raises(InputError, match=r"no qcow2 disk 'vb7'; its disks: .*length 3"):
        chosen(disks, device="vb7")
    with pytest.raises(InputError, match=r"no qcow2 disk 'layer1'"):
        chosen(disks, node="layer1")
    with pytest.raises(InputError, match=r"no qcow2 disk whose image is /images/a3.qcow2"):
        chosen(disks, image=Path("/images/a3.qcow2"))  # it is not there


@pytest.mark.parametrize("release", RELEASES)
def test_iothreads_are_those_of_the_object_tree(release):
    assert list_iothreads(RecordedQmp(recorded(release, "disks"))) == ["io0"]


JOBS = {
    "backup": ("blockdev-backup", {"target": "target", "sync": "full"}),
    "mirror": ("blockdev-mirror", {"target": "target", "sync": "full"}),
    "commit": ("block-commit", {}),
    "stream": ("block-stream", {}),
}


@pytest.mark.integration
@pytest.mark.qemu(since=(6, 1))
@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("named", [False, True])
def test_a_disk_with_a_block_job_is_told_from_none(make_chain, start_daemon, qemu, job, named):
    chain = make_chain(4)
    daemon = start_daemon(chain.active, qemu=qemu)
    daemon.monitor.execute("blockdev-add", driver="null-co", node_name="target", size=chain.virtual_size)
    command, arguments = JOBS[job]
    daemon.monitor.execute(command, {"job-id": "job7", "device": "disk0", "speed": 65536, **arguments})
    image = chain.active if named else None
    with (
        pytest.raises(InputError, match=r"(a block job has its .* over the disk.*active.qcow2, length 4|job7 works)"),
        open_session(daemon.qmp, image=image),
    ):
        pass
