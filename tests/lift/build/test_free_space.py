"""What a block-stream writes is known before it begins."""

import time

import pytest
from tests.support.chains import make_chain
from tests.support.daemon import starting_daemons
from tests.support.owned_chain import make_owned_chain

from chainlift.chain import open_chain
from chainlift.lift.build.free_space import room_for_stream
from chainlift.qcow2.writer import write_image

pytestmark = pytest.mark.integration


def needed_by(image):
    with open_chain(image) as chain:
        return room_for_stream(chain)


def grown_by(image, directory, qemu="host"):
    """By how much the file grows when QEMU streams everything into it."""
    before = image.stat().st_size
    with starting_daemons(directory) as start:
        daemon = start(image, qemu=qemu)
        daemon.monitor.execute("block-stream", {"job-id": "j", "device": "disk0"})
        while daemon.monitor.execute("query-jobs"):
            time.sleep(0.01)
        daemon.monitor.execute("blockdev-reopen", {"options": [
            {"driver": "qcow2", "node-name": "disk0", "file": "disk0-file", "backing": None},
        ]})  # fmt: skip
    return image.stat().st_size - before


@pytest.mark.parametrize("seed", range(32))
def test_a_stream_needs_no_more_than_was_said(tmp_path, seed):
    image = make_chain(tmp_path / "c", seed)
    with open_chain(image) as chain:
        if chain.layers[0].image.header.extended_l2:
            return  # of these QEMU 7.2 would die
    assert needed_by(image) >= grown_by(image, tmp_path)


def test_where_all_layers_are_alike_it_is_known_to_the_cluster(tmp_path):
    image = make_owned_chain(tmp_path / "c", 6).active
    needed = needed_by(image)
    grown = grown_by(image, tmp_path)
    assert grown <= needed <= grown + 5 * 65536  # refcounts, which have room yet


def test_zeros_and_what_the_active_layer_has_need_nothing(tmp_path):
    for number, clusters, zeros in ((0, range(8), []), (1, [20], range(4)), (2, range(4, 8), [20])):
        write_image(
            tmp_path / f"{number}", virtual_size=8 << 20, clusters=clusters, data=lambda _: b"x" * 65536,
            zero_clusters=zeros, backing_file=f"{number - 1}" if number else None,
            backing_format="qcow2" if number else None,
        )  # fmt: skip
    assert needed_by(tmp_path / "2") == 0
    assert grown_by(tmp_path / "2", tmp_path) == 0


def test_holes_of_a_raw_base_need_nothing(tmp_path):
    with (tmp_path / "base").open("wb") as base:
        base.truncate(64 << 20)
        base.seek(5 << 20)
        base.write(b"x" * 65536)
    write_image(tmp_path / "top", virtual_size=64 << 20, backing_file="base", backing_format="raw")
    needed = needed_by(tmp_path / "top")
    # But for those that one step of the job reads together with data.
    assert grown_by(tmp_path / "top", tmp_path) <= needed <= 4 << 20
