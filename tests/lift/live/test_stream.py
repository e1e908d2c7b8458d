import os
import time

import pytest
from tests.support.daemon import read_all
from tests.support.lifts import live_index
from tests.support.mounts import on_a_loop_device
from tests.support.owned_chain import everything
from tests.support.stock import create, img, read

from chainlift.errors import ImageError, InputError, QemuError, UnknownStateError
from chainlift.lift.live.graph import query_graph
from chainlift.lift.live.session import open_session
from chainlift.lift.live.stream import stream_live
from chainlift.lift.record.pointer import named_in
from chainlift.qcow2.writer import write_image
from chainlift.qemu.find import find_qemu

pytestmark = pytest.mark.integration


def test_a_streamed_disk_stands_alone_and_nothing_of_the_index_is_left(make_chain, start_daemon):
    chain = make_chain(12)
    daemon = start_daemon(chain.active)
    with open_session(daemon.qmp) as session:
        result = stream_live(session, qemu=find_qemu(need=("storage-daemon",)))
    assert result.bytes == chain.virtual_size
    assert named_in(chain.active) is None
    assert len(daemon.nodes()) == 2
    assert not (chain.directory / "active.qcow2.lift").exists()
    with daemon.client() as client:
        assert read_all(client) == everything(chain)


def test_a_qemu_that_is_killed_right_after_leaves_the_whole_disk(make_chain, start_daemon, same_bytes):
    chain = make_chain(12)
    daemon = start_daemon(chain.active)
    with open_session(daemon.qmp) as session:
        stream_live(session, qemu=None)
        daemon.process.kill()
    assert named_in(chain.active) is None
    same_bytes(chain.active, chain.files[-2])


def test_a_job_that_a_killed_run_has_left_is_finished_by_the_next(make_chain, start_daemon):
    chain = make_chain(6)
    daemon = start_daemon(chain.active)
    with open_session(daemon.qmp) as session:
        job = f"{session.active().prefix}-stream"
        session.monitor.execute("block-stream", {"job-id": job, "device": "disk0", "auto-finalize": False})
        while session.monitor.execute("query-jobs")[0]["status"] != "pending":
            time.sleep(0.05)
    with open_session(daemon.qmp) as session:
        assert any("killed run" in warning for warning in session.warnings)
        assert session.monitor.execute("query-jobs") == []
        assert session.graph.backing_chain("disk0") == ["disk0"]
    assert named_in(chain.active) is None
    with daemon.client() as client:
        assert read_all(client) == everything(chain)


def test_a_job_that_is_cancelled_leaves_the_disk_on_its_chain(make_chain, start_daemon, same_bytes):
    chain = make_chain(12)
    daemon = start_daemon(chain.active)
    pointer = named_in(chain.active)

    def cancel(done, whole):
        daemon.monitor.execute("block-job-cancel", device=daemon.monitor.execute("query-block-jobs")[0]["device"])

    with open_session(daemon.qmp) as session, pytest.raises(QemuError, match="job failed: somebody cancelled it"):
        stream_live(session, qemu=None, rate_bytes_per_s=1 << 16, progress=cancel)
    assert named_in(chain.active) == pointer
    assert len(daemon.nodes()) == 26
    assert not (chain.directory / "active.qcow2.lift").exists()
    assert query_graph(daemon.monitor).nodes["disk0"].filename == str(chain.active)  # what a snapshot would name
    same_bytes(chain.active, chain.files[-2])
    with daemon.client() as client:
        assert read_all(client) == everything(chain)


@pytest.mark.parametrize("is_lifted", [False, True])
def test_a_qemu_that_ends_in_the_middle_leaves_what_is_not_known(make_chain, start_daemon, same_bytes, is_lifted):
    chain = make_chain(12)
    daemon = start_daemon(chain.active)
    if is_lifted:
        with open_session(daemon.qmp) as session:
            live_index(session)
    pointer = named_in(chain.active)
    with open_session(daemon.qmp) as session, pytest.raises(UnknownStateError, match="connection was lost"):
        stream_live(session, qemu=None, rate_bytes_per_s=1 << 16, progress=lambda *_: daemon.process.kill())
    assert named_in(chain.active) == pointer
    same_bytes(chain.active, chain.files[-2])


@pytest.mark.qemu(since=(9, 0))
def test_where_an_export_in_an_iothread_would_end_qemu_a_stream_is_refused(make_chain, start_daemon, qemu):
    chain = make_chain(4)
    iothread = ("--object", "iothread,id=io0")
    daemon = start_daemon(chain.active, qemu=qemu, export=",iothread=io0", extra=iothread)
    before = daemon.nodes()
    with open_session(daemon.qmp) as session, pytest.raises(InputError, match=r"dies of block-stream.*fixed-iothread"):
        stream_live(session, qemu=None)
    assert daemon.nodes() == before
    daemon.process.kill()
    daemon = start_daemon(chain.active, qemu=qemu, export=",iothread=io0,fixed-iothread=on", extra=iothread)
    with open_session(daemon.qmp) as session:
        stream_live(session, qemu=None)
    with daemon.client() as client:
        assert read_all(client) == everything(chain)


def test_an_image_that_another_opens_without_its_backing_file_is_not_filled(make_chain, start_daemon):
    chain = make_chain(3)
    other = chain.directory / "other.qcow2"
    name = f'json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{chain.active}"}},"backing":null}}'
    create(other, name)
    daemon = start_daemon(chain.active)
    before, nodes = read(other), daemon.nodes()
    with open_session(daemon.qmp) as session, pytest.raises(InputError, match=r"without its own .* by .*/other"):
        stream_live(session, qemu=None)
    assert (read(other), daemon.nodes()) == (before, nodes)
    img("rebase", "-u", "-f", "qcow2", "-b", chain.active, "-F", "qcow2", other)
    before = read(other)
    with open_session(daemon.qmp) as session:
        stream_live(session, qemu=None)
    assert read(other) == before


@pytest.mark.parametrize("is_lifted", [False, True])
def test_a_file_system_that_is_too_small_is_found_before_anything_is_changed(
    tmp_path, make_chain, start_daemon, is_lifted
):
    mount = tmp_path / "mount"
    mount.mkdir()
    with on_a_loop_device(mount, "ext4", tmp_path / "disk", 128 << 20):
        chain = make_chain(12, directory=mount / "chain", per_layer=8)
        daemon = start_daemon(chain.active)
        if is_lifted:
            with open_session(daemon.qmp) as session:
                live_index(session)
        pointer, nodes = named_in(chain.active), daemon.nodes()
        files = sorted(mount.rglob("*"))
        fill = mount / "fill"
        with fill.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, _free(mount) - (8 << 20))
        with (
            open_session(daemon.qmp) as session,
            pytest.raises(ImageError, match=r"are needed, .* are free; make room"),
        ):
            stream_live(session, qemu=None)
        assert (named_in(chain.active), daemon.nodes()) == (pointer, nodes)
        fill.unlink()
        assert sorted(mount.rglob("*")) == files
        # As much as is needed, and little more, is enough.
        with fill.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, _free(mount) - (32 << 20))
        with open_session(daemon.qmp) as session:
            stream_live(session, qemu=None)
        with daemon.client() as client:
            assert read_all(client) == everything(chain)
        daemon.process.kill()


def _free(directory):
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


@pytest.mark.qemu(since=(6, 1))
def test_an_image_with_subclusters_is_streamed_where_qemu_survives_it(tmp_path, start_daemon, qemu):
    for number, extended in ((0, False), (1, True)):
        write_image(
            tmp_path / f"{number}", virtual_size=8 << 20, clusters=range(4) if number == 0 else [2],
            data=lambda cluster, n=number: bytes([n * 16 + cluster + 1]) * 65536, extended_l2=extended,
            subclusters=[0xFF00] if extended else None,
            backing_file="0" if number else None, backing_format="qcow2" if number else None,
        )  # fmt: skip
    daemon = start_daemon(tmp_path / "1", qemu=qemu)
    with daemon.client() as client:
        before = read_all(client)
    with open_session(daemon.qmp) as session:
        if session.version >= (8, 1, 0):
            stream_live(session, qemu=None)
        else:
            with pytest.raises(InputError, match="dies of block-stream into an image with subclusters"):
                stream_live(session, qemu=None)
    with daemon.client() as client:
        assert read_all(client) == before
