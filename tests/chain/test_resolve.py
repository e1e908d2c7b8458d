"""Windows of a chain against a model that looks at every cluster of every layer by itself."""

import numpy as np
import pytest
from tests.support.chains import make_chain, plain_chain

from chainlift import open_chain
from chainlift.chain import Kind
from chainlift.chain.resolve import WINDOW_GRANULES, Resolver
from chainlift.errors import ImageError
from chainlift.qcow2.writer import write_image

K64 = 65536
MIB = 1 << 20


def over(path, backing, **more):
    write_image(path, backing_file=backing, backing_format="qcow2", **more)


def by_sector(windows, size):
    """Layer and kind of every sector."""
    layer, kind = np.full(-(-size // 512), -9), np.full(-(-size // 512), 99)
    for window in windows:
        for begin, length, owner, what in zip(
            window.guest_offsets(), window.lengths(), window.layer, window.kind, strict=True
        ):
            place = slice(int(begin) // 512, -(-int(begin + length) // 512))
            assert (layer[place] == -9).all(), "windows overlap"
            layer[place], kind[place] = owner, what
    assert (layer != -9).all(), "a part of the disk is in no window"
    return layer, kind


@pytest.mark.parametrize("seed", range(12))
def test_a_chain_is_what_its_layers_say_one_by_one(tmp_path, seed):
    image = make_chain(tmp_path / "chain", seed)
    with open_chain(image) as chain:
        size = chain.virtual_size
        layer, kind = by_sector(chain.resolve(), size)
        expected_layer, expected_kind = np.full(len(layer), -1), np.full(len(layer), int(Kind.UNALLOCATED))
        is_open = np.ones(len(layer), bool)
        for index, visible in enumerate(chain.visible_sizes.tolist()):
            is_open[-(-visible // 512) :] = False
            one = chain.layers[index]
            if one.image is None:
                mine = is_open.copy()
                said = np.full(len(layer), int(Kind.DATA))
            else:
                _, own = by_sector(alone(one.path), one.virtual_size)
                said = np.full(len(layer), int(Kind.UNALLOCATED))
                said[: len(own)] = own[: len(layer)]
                mine = is_open & (said != Kind.UNALLOCATED)
            expected_layer[mine], expected_kind[mine] = index, said[mine]
            is_open[mine] = False
        assert (layer == expected_layer).all()
        assert (kind == expected_kind).all()


def alone(path):
    """The windows of a layer by itself, as if it had no backing file."""
    name = f'json:{{"driver":"qcow2","backing":null,"file":{{"driver":"file","filename":"{path}"}}}}'
    with open_chain(name) as chain:
        return list(chain.resolve())


def test_a_span_is_the_same_as_that_part_of_the_whole(tmp_path):
    image = make_chain(tmp_path / "chain", 3)
    with open_chain(image) as chain:
        whole, kinds = by_sector(chain.resolve(), chain.virtual_size)
        for start, end in ((0, 1), (70_000, 300_000), (chain.virtual_size - 1, chain.virtual_size)):
            for window in Resolver(chain).windows(start, end):
                assert window.start % window.granularity == 0
                for begin, owner, kind in zip(window.guest_offsets(), window.layer, window.kind, strict=True):
                    assert (owner, kind) == (whole[int(begin) // 512], kinds[int(begin) // 512])


def test_a_granule_in_which_a_layer_ends_is_a_window_of_sectors(tmp_path):
    write_image(tmp_path / "base", virtual_size=MIB, clusters=range(16))
    over(tmp_path / "middle", "base", virtual_size=3 * K64 + 1024)
    over(tmp_path / "top", "middle", virtual_size=MIB)
    with open_chain(tmp_path / "top") as chain:
        windows = [(w.start, w.length, w.granularity) for w in chain.resolve()]
        assert windows == [(0, 3 * K64, K64), (3 * K64, K64, 512), (4 * K64, MIB - 4 * K64, K64)]
        layer, _ = by_sector(chain.resolve(), MIB)
    assert layer[: (3 * K64 + 1024) // 512].tolist() == [2] * ((3 * K64 + 1024) // 512)
    assert set(layer[(3 * K64 + 1024) // 512 :].tolist()) == {-1}


def test_windows_are_cut_where_memory_would_grow(tmp_path):
    size = (WINDOW_GRANULES + 5) * 512
    write_image(tmp_path / "disk", virtual_size=size, cluster_size=512, clusters=[0, WINDOW_GRANULES, 65 * 64])
    with open_chain(tmp_path / "disk") as chain:
        windows = list(chain.resolve())
    assert all(len(window.kind) <= WINDOW_GRANULES for window in windows)
    assert sum(window.length for window in windows) == size
    assert sum(int((window.kind == Kind.DATA).sum()) for window in windows) == 3


def test_a_tally_counts_what_is_hidden_too_and_each_unit_once(tmp_path):
    image = plain_chain(tmp_path / "c", length=3)
    with open_chain(image) as chain:
        tally = np.zeros((len(chain.layers), len(Kind)), np.int64)
        resolver = Resolver(chain, tally)
        list(resolver.windows(0, chain.virtual_size))
        assert tally[:, Kind.DATA].tolist() == [3, 3, 3, 32]
        assert resolver.table_count.tolist() == [1, 1, 1, 1]
        cut = np.zeros_like(tally)
        resolver = Resolver(chain, cut)
        list(resolver.windows(0, MIB))
        resolver.tally_beyond(MIB)
        assert (cut == tally).all()


def test_a_bad_entry_matters_only_where_it_is_seen(tmp_path):
    write_image(tmp_path / "base", virtual_size=MIB, clusters=[0, 1])
    over(tmp_path / "top", "base", virtual_size=MIB, clusters=[1])
    with open_chain(tmp_path / "base") as chain:
        image = chain.layers[0].image
        (table,) = image.l2_offsets(0, 1).tolist()
    with (tmp_path / "base").open("r+b") as stream:
        stream.seek(table + 8)
        stream.write((1 << 55).to_bytes(8, "big"))  # cluster 1: far behind the file's end
    with open_chain(tmp_path / "top") as chain:
        layer, _ = by_sector(chain.resolve(), MIB)
        assert layer[: 2 * K64 // 512 : K64 // 512].tolist() == [1, 0]
        with pytest.raises(ImageError, match="base: L2 entry"):
            list(Resolver(chain, np.zeros((2, len(Kind)), np.int64)).windows(0, MIB))
    with open_chain(tmp_path / "base") as chain, pytest.raises(ImageError, match="L2 entry"):
        list(chain.resolve())
