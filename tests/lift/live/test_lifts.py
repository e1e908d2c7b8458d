import contextlib
import json
import shutil
from pathlib import Path

import pytest
from tests.support.daemon import blockdev, read_all
from tests.support.lifts import live_index, live_restore, live_squash
from tests.support.owned_chain import everything
from tests.support.stock import create, img, write

from chainlift.errors import AnswerIsNo, ImageError, InputError, OperationError
from chainlift.lift import verbs
from chainlift.lift.live.session import open_session
from chainlift.lift.record.image_state import read_image_state
from chainlift.lift.record.pointer import named_in
from chainlift.qemu.find import find_qemu

pytestmark = pytest.mark.integration


@pytest.fixture
def qemu():
    return find_qemu(need=("storage-daemon", "img"))


def index(daemon, chain, qemu, **options):
    with open_session(daemon.qmp) as session:
        return live_index(session, qemu=qemu, **options)


def test_a_running_disk_is_indexed_read_written_and_restored(make_chain, start_daemon, same_bytes, qemu):
    chain = make_chain(30)
    daemon = start_daemon(chain.active)
    before = daemon.nodes()
    original = named_in(chain.active)
    with daemon.client() as client:
        result = index(daemon, chain, qemu)
        assert result.manifest.kind == "index"
        assert result.left == []
        assert read_all(client) == everything(chain)
        assert len(daemon.nodes()) == 2 + 3 + 31  # the disk; table, descriptor and its file; extents
        client.write(5 << 20, b"x" * 4096)
        client.flush()
        with open_session(daemon.qmp) as session:
            live_restore(session, clean=True)
        assert client.read(5 << 20, 4096) == b"x" * 4096
        client.write(5 << 20, chain.block((5 << 20) // 4096))
        client.flush()
        assert read_all(client) == everything(chain)
    assert len(daemon.nodes()) == len(before)
    assert named_in(chain.active) == str(chain.directory / original)  # as QEMU names the node
    assert not (chain.directory / "active.qcow2.lift").exists()
    same_bytes(chain.active, chain.files[-2])


def test_a_raw_base_is_read_without_a_node_of_its_format_as_by_libvirt(start_daemon, tmp_path, qemu):
    base = tmp_path / "base.raw"
    base.write_bytes(bytes(range(256)) * (4 << 12))
    below, active = tmp_path / "below.qcow2", tmp_path / "active.qcow2"
    img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", below)
    write(below, 7, "1M", "64k")
    create(active, below, named=str(below))
    shown = {"driver": "file", "node-name": "base", "filename": str(base), "read-only": True}
    disks = ["--blockdev", json.dumps(shown)]
    disks += [*blockdev(below, "below", backing="base", **{"read-only": True}), *blockdev(active, backing="below")]
    disks[3] = json.dumps({**json.loads(disks[3]), "read-only": True})
    daemon = start_daemon(active, disks=disks)
    with daemon.client() as client:
        before = read_all(client)
        for lift in (live_index, live_squash):
            with open_session(daemon.qmp) as session:
                lift(session, qemu=qemu)
            assert read_all(client) == before
            with open_session(daemon.qmp) as session:
                live_restore(session, clean=True)
            assert read_all(client) == before


@pytest.mark.parametrize("absolute_names", [False, True])
def test_a_long_chain_comes_back_layer_by_layer_where_its_names_allow_it(make_chain, start_daemon, absolute_names):
    chain = make_chain(40, virtual_size=8 << 20, per_layer=2, absolute_names=absolute_names)
    daemon = start_daemon(chain.active)
    with open_session(daemon.qmp) as session:
        live_index(session, qemu=None)
    with open_session(daemon.qmp) as session:
        live_restore(session, clean=True)
        session.refresh()
        ours = [name for name in session.graph.names if name.startswith("chainlift-")]
        assert 1 < len(ours) < 40 if absolute_names else len(ours) == 1  # one for each command
        # A layer with a name of its own under a relative one in the header would be a json: name with all below in it.
        assert sum(node.filename.startswith("json:") for node in session.graph.nodes.values()) <= 1
    assert len(daemon.nodes()) == 2 * 41
    with daemon.client() as client:
        assert read_all(client) == everything(chain)
    with open_session(daemon.qmp) as session:
        assert live_index(session, qemu=None).left == []
    with daemon.client() as client:
        assert read_all(client) == everything(chain)


def test_few_extents_are_left_where_that_is_asked_and_the_budget_allows(make_chain, start_daemon, qemu):
    chain = make_chain(30)
    daemon = start_daemon(chain.active)
    result = index(daemon, chain, qemu, copy_budget_bytes=1 << 30, most_extents=9)
    assert result.manifest.extents == 9
    result = index(daemon, chain, qemu, copy_budget_bytes=1 << 19, most_extents=9)
    assert 9 < result.manifest.extents < 31
    with daemon.client() as client:
        assert read_all(client) == everything(chain)


def test_an_image_that_is_indexed_already_is_indexed_again(make_chain, start_daemon, qemu):
    chain = make_chain(8)
    daemon = start_daemon(chain.active)
    index(daemon, chain, qemu)
    nodes = len(daemon.nodes())
    index(daemon, chain, qemu, copy_budget_bytes=1 << 20, clean=True)
    assert len(daemon.nodes()) < nodes
    files = sorted(path.name for path in (chain.directory / "active.qcow2.lift").iterdir())
    assert files == ["index-2.json", "index-2.table", "index-2.vmdk"]
    with daemon.client() as client:
        assert read_all(client) == everything(chain)


def test_a_running_disk_is_squashed_over_an_index_and_restored(make_chain, start_daemon, same_bytes, qemu):
    chain = make_chain(15)
    daemon = start_daemon(chain.active)
    nodes, original = len(daemon.nodes()), named_in(chain.active)
    index(daemon, chain, qemu)
    with open_session(daemon.qmp) as session:
        result = live_squash(session, qemu=qemu)
    assert result.manifest.kind == "squash"
    assert len(daemon.nodes()) == 6  # the disk, the squash and the base
    same_bytes(chain.active, chain.files[-2])
    with daemon.client() as client:
        assert read_all(client) == everything(chain)
        with open_session(daemon.qmp) as session:
            live_restore(session, clean=True)
        assert read_all(client) == everything(chain)
    assert (len(daemon.nodes()), named_in(chain.active)) == (nodes, str(chain.directory / original))


def test_a_lift_that_reads_one_byte_differently_is_not_switched_to_when_all_is_compared(
    make_chain, start_daemon, qemu, monkeypatch
):
    chain = make_chain(4)
    daemon = start_daemon(chain.active)
    nodes = daemon.nodes()
    owned = max(block for block in range(len(chain.owner)) if 1 < chain.owner[block] < 5)

    real = verbs.prepare_squash

    @contextlib.contextmanager
    def spoilt(*arguments, **options):
        with real(*arguments, **options) as prepared:
            path = Path(prepared.manifest.files[0].path)
            data = bytearray(path.read_bytes())
            data[data.index(chain.block(owned))] ^= 1
            path.write_bytes(data)
            yield prepared

    with open_session(daemon.qmp) as session:
        monkeypatch.setattr(verbs, "prepare_squash", spoilt)
        with pytest.raises(AnswerIsNo, match=f"at byte {owned * 4096} of the disk"):
            live_squash(session, qemu=qemu, content=True)
        monkeypatch.undo()
        compared = []
        live_squash(session, qemu=qemu, content=True, progress=compared.append)
    assert compared[-1] == chain.virtual_size
    assert len(daemon.nodes()) < len(nodes)


def test_a_layer_that_was_replaced_on_disk_is_refused(make_chain, start_daemon, qemu):
    chain = make_chain(5)
    daemon = start_daemon(chain.active)
    victim = chain.files[2]
    shutil.copy(victim, victim.with_suffix(".copy"))
    victim.with_suffix(".copy").replace(victim)
    with pytest.raises(ImageError, match=r"layer0002.qcow2: was replaced: QEMU's layer 3 .* still has the file open"):
        index(daemon, chain, qemu)
    assert read_image_state(chain.active).manifest is None


def test_a_header_that_names_another_chain_than_qemu_has_is_refused(make_chain, start_daemon, qemu, tmp_path):
    chain = make_chain(5)
    daemon = start_daemon(chain.active)
    layer = chain.files[4]
    # qemu-img refuses that while QEMU reads the layer; another tool would not
    data = bytearray(layer.read_bytes())
    data[: 1 << 16] = bytes(data[: 1 << 16]).replace(b"layer0003.qcow2", b"layer0002.qcow2")
    layer.write_bytes(data)
    with pytest.raises(ImageError, match=r"layer0002.qcow2: QEMU's layer 2 \(node #block\d+\) is .*layer0003.qcow2"):
        index(daemon, chain, qemu)


def test_a_disk_with_a_block_job_is_refused(make_chain, start_daemon, qemu):
    chain = make_chain(5)
    daemon = start_daemon(chain.active)
    daemon.monitor.execute("block-stream", device="disk0", job_id="job0", speed=1)
    with pytest.raises(InputError, match=r"block job job0 works on node"):
        index(daemon, chain, qemu)


def test_a_disk_that_is_not_lifted_cannot_be_restored(make_chain, start_daemon):
    chain = make_chain(3)
    daemon = start_daemon(chain.active)
    with open_session(daemon.qmp) as session, pytest.raises(ImageError, match="is not lifted"):
        live_restore(session)


def test_a_restore_without_one_of_the_layers_leaves_the_lift_in_place(make_chain, start_daemon, qemu):
    chain = make_chain(5)
    daemon = start_daemon(chain.active)
    index(daemon, chain, qemu)
    nodes = daemon.nodes()
    chain.files[3].rename(chain.files[3].with_suffix(".away"))
    with open_session(daemon.qmp) as session, pytest.raises((ImageError, OperationError), match="layer0003"):
        live_restore(session)
    assert daemon.nodes() == nodes
    with daemon.client() as client:
        assert read_all(client) == everything(chain)


@pytest.mark.qemu(since=(6, 1), before=(9, 0))
def test_an_export_in_an_iothread_of_an_old_qemu_is_refused(make_chain, start_daemon, any_qemu):
    chain = make_chain(2)
    iothread = ("--object", "iothread,id=io0")
    daemon = start_daemon(chain.active, qemu=any_qemu.label, export=",iothread=io0", extra=iothread)
    with pytest.raises(InputError, match="may die if a disk is switched that it exports from an iothread"):
        index(daemon, chain, any_qemu)


@pytest.mark.qemu(before=(6, 1))
def test_a_qemu_without_blockdev_reopen_is_refused(make_chain, start_daemon, any_qemu):
    chain = make_chain(2)
    daemon = start_daemon(chain.active, qemu=any_qemu.label)
    with pytest.raises(InputError, match="no blockdev-reopen"), contextlib.ExitStack() as stack:
        stack.enter_context(open_session(daemon.qmp))
