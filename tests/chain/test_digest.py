import numpy as np
import pytest
from tests.support.chains import make_chain

from chainlift.chain import open_chain
from chainlift.chain.digest import TablesDigest, digest_tables
from chainlift.qcow2.writer import write_image


@pytest.mark.parametrize("seed", range(30))
def test_what_is_taken_in_while_a_chain_is_resolved_is_what_the_tables_say_by_themselves(tmp_path, seed):
    with open_chain(make_chain(tmp_path / "c", seed)) as chain:
        digests = [TablesDigest() for _ in chain.layers]
        for _ in chain.resolve(digests=digests):
            pass
        for layer, digest in zip(chain.layers, digests, strict=True):
            if layer.image is not None:
                assert digest.hexdigest() == digest_tables(layer.image, min(layer.virtual_size, chain.virtual_size))


def test_every_entry_counts(tmp_path):
    found = set()
    for number, clusters in enumerate([[0, 9000, 20000], [1, 9000, 20000], [0, 9001, 20000], [0, 9000, 20001], [0]]):
        path = tmp_path / f"{number}.qcow2"
        write_image(path, virtual_size=2 << 30, clusters=clusters)
        with open_chain(path) as chain:
            found.add(digest_tables(chain.layers[0].image, chain.virtual_size))
    assert len(found) == 5


def test_what_lies_behind_the_span_does_not_count(tmp_path):
    for number, clusters in enumerate([[5], [5, 20000]]):
        write_image(tmp_path / f"{number}.qcow2", virtual_size=2 << 30, clusters=clusters)
    with open_chain(tmp_path / "0.qcow2") as one, open_chain(tmp_path / "1.qcow2") as other:
        images = one.layers[0].image, other.layers[0].image
        assert len({digest_tables(image, 1 << 30) for image in images}) == 1
        assert len({digest_tables(image, 2 << 30) for image in images}) == 2


def test_windows_that_share_a_cluster_take_it_in_once(tmp_path):
    # The layer in the middle ends inside a cluster of the base, where the resolver cuts its windows.
    write_image(tmp_path / "base", virtual_size=4 << 20, cluster_size=2 << 20, clusters=np.arange(2))
    write_image(tmp_path / "mid", virtual_size=(1 << 20) + 512, cluster_size=4096, clusters=[3],
                backing_file="base", backing_format="qcow2")  # fmt: skip
    write_image(tmp_path / "top", virtual_size=4 << 20, backing_file="mid", backing_format="qcow2")
    with open_chain(tmp_path / "top") as chain:
        digests = [TablesDigest() for _ in chain.layers]
        assert len(list(chain.resolve(digests=digests))) > 1
        assert digests[2].hexdigest() == digest_tables(chain.layers[2].image, 4 << 20)
