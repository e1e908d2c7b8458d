import itertools
import json
import subprocess

import numpy as np
import pytest

from chainlift.study.build_offline import Layout, build_offline, changed_clusters
from chainlift.study.chain_store import ChainDirectory
from chainlift.study.plan_file import load_plan, parse_plan
from chainlift.study.progress import Silent

PLAN = """
name = "small"
lengths = [1, 5]
[chain]
build = "offline"
length = 5
size = "256M"
[chain.workload]
size = "64M"
"""


def test_the_experiments_load_changes_as_many_clusters_as_it_makes_writes():
    spec = load_plan("seed").chain
    layers = list(changed_clusters(spec))
    assert len(layers) == 300
    writes = 53 * 1024 * 10 / 16384
    # Thirty-three writes hit thirty-three of 163,840 clusters; the inode and the journal add two to four.
    assert writes + 1 < np.mean([len(layer) for layer in layers]) < writes + 5
    for layer in layers:
        assert np.all(np.diff(layer) > 0)
        assert layer[0] == 1
        assert layer[-1] < spec.size // spec.cluster_size


def test_a_layer_writes_only_where_the_base_has_data():
    spec = load_plan("long").chain
    base = set(Layout.of(spec).base_clusters().tolist())
    for layer in list(changed_clusters(spec))[:50]:
        assert base.issuperset(layer.tolist())


def test_a_sequential_load_goes_through_the_file_in_order():
    spec = parse_plan(PLAN.replace('size = "64M"', 'size = "64M"\nrw = "write"')).chain
    found = [layer[layer >= Layout.of(spec).file_start] for layer in changed_clusters(spec)]
    assert all(one[-1] <= other[0] for one, other in itertools.pairwise(found))


def test_the_same_plan_gives_the_same_layers():
    spec = parse_plan(PLAN).chain
    for one, other in zip(changed_clusters(spec), changed_clusters(spec), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.integration
def test_a_chain_laid_down_is_clean_and_its_layers_are_in_order(tmp_path):
    spec = parse_plan(PLAN).chain
    chain = ChainDirectory(tmp_path / "chain")
    with chain.lock(exclusive=True):
        manifest = build_offline(spec, chain, Silent())
    for number in range(6):
        subprocess.run(["qemu-img", "check", "-q", chain.layer(number)], check=True)
    info = subprocess.run(
        ["qemu-img", "info", "--backing-chain", "--output=json", chain.layer(5)], check=True, capture_output=True
    )
    names = [entry["filename"] for entry in json.loads(info.stdout)]
    assert names == [str(chain.layer(n)) for n in (5, 4, 3, 2, 1, 0)]
    assert manifest.shape.length == 5
    assert manifest.shape.layer_clusters[1:] == [len(layer) for layer in changed_clusters(spec)]


@pytest.mark.integration
def test_an_interrupted_build_continues_to_the_same_chain(tmp_path):
    spec = parse_plan(PLAN).chain
    whole, broken = ChainDirectory(tmp_path / "whole"), ChainDirectory(tmp_path / "broken")
    with whole.lock(exclusive=True):
        build_offline(spec, whole, Silent())

    class Interrupting(Silent):
        def step(self, done, note=""):
            if done == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), broken.lock(exclusive=True):
        build_offline(spec, broken, Interrupting())
    third = broken.layer(3).stat().st_mtime_ns
    broken.layer(4).write_bytes(b"half a layer")
    with broken.lock(exclusive=True):
        manifest = build_offline(spec, broken, Silent())
    assert manifest.resumed == 1
    assert broken.layer(3).stat().st_mtime_ns == third
    for number in range(6):
        assert broken.layer(number).read_bytes() == whole.layer(number).read_bytes()
