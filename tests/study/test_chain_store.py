import pytest

from chainlift.errors import InputError, OperationError
from chainlift.results.model import ChainShape
from chainlift.study.chain_store import ChainDirectory, layer_name


def chain_of(tmp_path, length):
    chain = ChainDirectory(tmp_path / "chain")
    chain.path.mkdir()
    for number in range(length + 1):
        chain.layer(number).write_bytes(b"x" * (number + 1))
    return chain


def finish(chain, length):
    shape = ChainShape(
        built="offline", virtual_size_bytes=1 << 30, cluster_size_bytes=65536, layer_bytes=chain.sizes(length)
    )
    return chain.finish(shape, {"chain": {}}, resumed=0)


def test_the_base_is_layer_zero():
    assert (layer_name(0), layer_name(7), layer_name(1000)) == ("base.qcow2", "layer-0007.qcow2", "layer-1000.qcow2")


def test_a_finished_chain_is_found_again_unchanged(tmp_path):
    chain = chain_of(tmp_path, 3)
    assert chain.manifest() is None
    manifest = finish(chain, 3)
    assert ChainDirectory(chain.path).manifest() == manifest
    chain.check_unchanged(manifest)


def test_a_layer_that_changed_or_went_is_named(tmp_path):
    chain = chain_of(tmp_path, 3)
    manifest = finish(chain, 3)
    chain.layer(2).write_bytes(b"yyy")
    with pytest.raises(InputError, match=r"layer-0002\.qcow2: this layer has changed"):
        chain.check_unchanged(manifest)
    chain.layer(2).unlink()
    with pytest.raises(InputError, match=r"layer-0002\.qcow2: this layer is gone"):
        chain.check_unchanged(manifest)


def test_two_builds_of_one_chain_do_not_run_at_once_and_two_measurements_do(tmp_path):
    chain = ChainDirectory(tmp_path / "chain")
    with chain.lock(exclusive=True):
        with pytest.raises(OperationError, match="another study uses"), chain.lock(exclusive=True):
            pass
        with pytest.raises(OperationError, match="another study builds"), chain.lock(exclusive=False):
            pass
    with chain.lock(exclusive=False), chain.lock(exclusive=False):
        pass


def test_a_resumed_build_keeps_the_layers_under_the_last_completed_snapshot(tmp_path):
    chain = chain_of(tmp_path, 4)
    for number in range(1, 4):
        chain.note_snapshot({"snapshot": number})
    with (chain.path / "snapshots.jsonl").open("ab") as stream:
        stream.write(b'{"snapsh')
    assert len(chain.snapshots()) == 3
    # Snapshot 3 made layer 3 the active one; it was written to when the build was killed, and 4 was only prepared.
    chain.keep_snapshots(3)
    assert sorted(p.name for p in chain.path.glob("*.qcow2")) == ["base.qcow2", "layer-0001.qcow2", "layer-0002.qcow2"]
    assert [note["snapshot"] for note in chain.snapshots()] == [1, 2, 3]
    chain.keep_snapshots(0)
    assert not list(chain.path.glob("*.qcow2"))
    assert chain.snapshots() == []
