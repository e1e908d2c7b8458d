"""The model against what was counted in QEMU and what can be counted by hand."""

from dataclasses import replace

import numpy as np
import pytest

from chainlift.cost import predict
from chainlift.cost.model import flush_cpu_s, memory_bytes, read_cpu_s, walk_s, write_cpu_s
from chainlift.cost.store import shipped_parameters
from chainlift.qcow2.writer import write_image

K64 = 65536
MIB = 1 << 20


# docs/upstream.md: calls of bdrv_(co_)is_inserted() for one read, counted with a probe.
@pytest.mark.parametrize(("length", "before_8", "since_8"), [(1, 15, 11), (10, 177, 155)])
def test_visits_are_those_that_were_counted(chain_of, shape_at, zero, length, before_8, since_8):
    shape = shape_at(chain_of(length))
    counting = replace(zero, visit_s=1.0)
    counts = [read_cpu_s(shape, replace(counting, entry_walks=walks), 4096) for walks in (2, 1)]
    assert counts == [before_8, since_8]


def test_a_write_and_a_flush_walk_down_the_chain_and_no_further(chain_of, shape_at, zero):
    shape = shape_at(chain_of(9))
    counting = replace(zero, visit_s=1.0, entry_walks=1)
    # Two walks over 10 layers of two nodes, and the file's own check.
    assert write_cpu_s(shape, counting) == 41
    assert flush_cpu_s(shape, counting) == 40


def test_without_the_check_no_node_is_visited(chain_of, shape_at):
    shape = shape_at(chain_of(9))
    parameters = shipped_parameters()[-1]
    less = predict(shape, parameters, "no-check").read_4k_cpu_s
    assert less.value == pytest.approx(read_cpu_s(shape, replace(parameters, visit_s=0.0, far_visit_s=0.0), 4096))


def test_pieces_are_those_that_requests_are_cut_into(tmp_path, shape_at, zero):
    # The top has every second cluster of the first MiB: 8 pieces there, 8 of the base between, and one behind.
    write_image(tmp_path / "base", virtual_size=2 * MIB, clusters=np.arange(32), data=b"B" * 2 * MIB)
    write_image(
        tmp_path / "top", virtual_size=2 * MIB, clusters=np.arange(0, 16, 2), data=b"T" * 8 * K64,
        backing_file="base", backing_format="qcow2",
    )  # fmt: skip
    shape = shape_at(tmp_path / "top")
    assert (shape.entered_runs.tolist(), shape.data_runs.tolist()) == ([1, 8], [8, 8])
    reads_of_files = replace(zero, io_s=1.0)
    # Of reads of 4 KiB none is cut, and every one ends in one read of a file.
    assert read_cpu_s(shape, reads_of_files, 4096, aio="io_uring") == pytest.approx(1)
    # The whole disk in one request: 16 pieces.
    assert read_cpu_s(shape, reads_of_files, 2 * MIB, aio="io_uring") == pytest.approx(16, rel=0.05)


def test_who_else_wants_the_near_cache_is_not_known(tmp_path, chain_of, shape_at, zero):
    long, near = chain_of(150), replace(zero, visit_s=1e-9, far_visit_s=9e-9, near_nodes=400.0)
    # 302 nodes are near, all of them, if the cache is free; but others may leave 200 of them there.
    shape, short = shape_at(long), shape_at(tmp_path / "20")
    cost = predict(shape, near)
    assert cost.read_4k_cpu_s.high == pytest.approx(read_cpu_s(shape, replace(near, near_nodes=200.0), 4096))
    assert any("near cache" in phrase for phrase in cost.unknown)
    # A cache that keeps next to none of them anyhow: what half as many would change is little, and all hangs on it.
    assert any("near cache" in phrase for phrase in predict(shape, replace(near, near_nodes=10.0)).unknown)
    assert predict(shape, replace(near, near_nodes=10.0, far_visit_s=1e-10)).unknown == ()
    assert predict(short, near).unknown == ()
    assert predict(short, near).read_4k_cpu_s.high == pytest.approx(read_cpu_s(short, near, 4096) * 1.5)


def test_a_cut_makes_tasks_and_what_falls_through_whole_makes_none(tmp_path, shape_at, zero):
    # The top has one cluster in the midst of each MiB, the layers below it nothing: 3 tasks a MiB there, none below.
    write_image(tmp_path / "0", virtual_size=32 * MIB, clusters=np.arange(512))
    for number in range(1, 5):
        write_image(
            tmp_path / str(number), virtual_size=32 * MIB, clusters=np.arange(8, 512, 16) if number == 4 else [],
            backing_file=str(number - 1), backing_format="qcow2",
        )  # fmt: skip
    tasks = replace(zero, task_s=1.0)
    assert read_cpu_s(shape_at(tmp_path / "4"), tasks, MIB) == pytest.approx(3, rel=0.1)
    assert read_cpu_s(shape_at(tmp_path / "4"), tasks, 4096) == pytest.approx(0)
    assert read_cpu_s(shape_at(tmp_path / "3"), tasks, MIB) == pytest.approx(0, abs=0.1)


def test_the_first_of_a_copy_takes_longer(tmp_path, shape_at, zero):
    write_image(tmp_path / "0", virtual_size=32 * MIB, clusters=np.arange(512))
    start = replace(zero, start_byte_s=1.0)
    costs = [read_cpu_s(shape_at(tmp_path / "0"), start, size) for size in (4096, K64, MIB)]
    assert costs == pytest.approx([4096, K64, K64], rel=0.05)


def test_what_was_never_written_is_not_read_from_a_file(tmp_path, shape_at, zero):
    write_image(tmp_path / "half", virtual_size=4 * MIB, clusters=np.arange(32), data=b"B" * 2 * MIB)
    shape = shape_at(tmp_path / "half")
    assert read_cpu_s(shape, replace(zero, io_s=1.0), 4096, aio="io_uring") == pytest.approx(0.5)
    assert read_cpu_s(shape, replace(zero, zero_byte_s=1.0), 4096) == pytest.approx(2048)
    # Of the reads of 4 KiB half end in a bottom half; the one of all reads a file.
    ends = replace(zero, bottom_half_s=1.0)
    assert [read_cpu_s(shape, ends, size) for size in (4096, 4 * MIB)] == pytest.approx([0.5, 0])


def test_a_compressed_read_pays_for_the_whole_cluster_and_says_what_it_does_not_know(tmp_path, shape_at, zero):
    write_image(tmp_path / "packed", virtual_size=MIB, clusters=np.arange(16), data=b"aab" * K64 * 5 + b"a" * K64,
                compress=True)  # fmt: skip
    shape = shape_at(tmp_path / "packed")
    assert read_cpu_s(shape, replace(zero, zlib_byte_s=1.0), 4096) == pytest.approx(K64)
    cost = predict(shape, shipped_parameters()[-1])
    assert "depends on its data" in cost.unknown[0]
    assert cost.read_4k_cpu_s.high > 2 * cost.read_4k_cpu_s.value


def test_small_caches_cost_a_read_of_a_table_at_every_layer(chain_of, shape_at, zero):
    path = chain_of(0)
    loads = replace(zero, table_s=1.0)
    assert read_cpu_s(shape_at(path), loads, 4096) == 0
    assert read_cpu_s(shape_at(path, l2_cache_bytes=0), loads, 4096) == 1


def test_a_longer_walk_costs_more_a_node(zero):
    near = replace(zero, visit_s=1.0, far_visit_s=1.0, near_nodes=100.0)
    # Those that the near cache does not keep take so much more, each; there is no end to how many.
    assert [float(walk_s(nodes, near)) for nodes in (50.0, 100.0, 200.0, 400.0)] == [50, 100, 300, 700]


@pytest.mark.parametrize(("cluster", "cache", "slice_bytes"), [(K64, None, K64), (2 * MIB, None, 2 * MIB),
                                                               (K64, K64, 4096)])  # fmt: skip
def test_a_cache_that_holds_all_tables_holds_them_whole(tmp_path, shape_at, cluster, cache, slice_bytes):
    # read_cache_sizes(): 2 MiB of a table with clusters of 2 MiB; 4 KiB where the cache is too small for the disk's.
    write_image(tmp_path / "0", virtual_size=1 << 30, cluster_size=cluster, clusters=[0])
    shape = shape_at(tmp_path / "0", l2_cache_bytes=cache)
    assert shape.slice_bytes.tolist() == [slice_bytes]


def test_memory_is_that_of_nodes_and_of_the_tables_that_are_read(chain_of, shape_at, zero):
    shape = shape_at(chain_of(3))
    # Of each layer its nodes and a cluster; one L2 table, the base's: the layers have none.
    held = memory_bytes(shape, replace(zero, node_bytes=1000.0, node_clusters=1.0))
    assert held == 4 * 1000 + 4 * K64 + K64


def test_lifts_cost_what_their_layers_cost(chain_of, shape_at):
    shape, parameters = shape_at(chain_of(100)), shipped_parameters()[-1]
    cost = {lift: predict(shape, parameters, lift).read_4k_cpu_s.value
            for lift in ("none", "prune", "index", "squash", "flatten")}  # fmt: skip
    assert cost["none"] > cost["prune"] > cost["squash"] > cost["flatten"] > 0
    assert cost["none"] > cost["index"] > cost["flatten"]
    assert [shape.lifted("prune", layers=n).length for n in (1, 7, 100)] == [1, 7, 100]


def test_a_chain_that_kills_a_read_has_no_figures_of_reads(chain_of, shape_at):
    shape = shape_at(chain_of(5))
    cost = predict(shape, replace(shipped_parameters()[-1], longest_layers=4))
    assert (cost.read_4k_cpu_s, cost.sequential_4m_cpu_s, cost.read_64k_latency_s) == (None, None, None)
    assert "dies" in cost.unknown[0]
    assert cost.open_cpu_s is not None


def test_json_has_the_uncertainty_beside_each_figure(chain_of, shape_at):
    found = predict(shape_at(chain_of(5)), shipped_parameters()[-1]).as_json()
    assert found["read_4k_cpu_s_low"] < found["read_4k_cpu_s"] < found["read_4k_cpu_s_high"]
