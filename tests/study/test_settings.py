"""What a plan varies: caches of L2 tables, cache modes, ways of reading files, clusters and disks."""

import json
import subprocess

import pytest
from tests.support.study import OFFLINE

from chainlift.errors import PlanError
from chainlift.qemu.find import find_qemu
from chainlift.report import document, write_report
from chainlift.report.data import natural
from chainlift.study.active_layer import ActiveLayers, scratch_directory
from chainlift.study.build_offline import build_offline
from chainlift.study.cells import cells_of
from chainlift.study.chain_store import ChainDirectory
from chainlift.study.extend import extends
from chainlift.study.l2_cache import as_blockdevs, described, with_caches
from chainlift.study.plan_file import parse_plan
from chainlift.study.plan_text import plan_text
from chainlift.study.progress import Silent
from chainlift.study.runner import run_study
from chainlift.study.settings import settings_of

SMALL = OFFLINE.format(chains="x").replace("repeats = 2", "repeats = 1")


def test_each_combination_is_a_plan_of_its_own_with_a_name():
    plan = parse_plan(SMALL + '[vary]\ncache = ["none", "writeback"]\nl2_cache_size = [0, "1M"]\nsize = ["256M"]\n')
    settings = settings_of(plan)
    assert list(settings) == [
        "cache=none, l2_cache_size=default, size=256M", "cache=none, l2_cache_size=1M, size=256M",
        "cache=writeback, l2_cache_size=default, size=256M", "cache=writeback, l2_cache_size=1M, size=256M",
    ]  # fmt: skip
    one = settings["cache=none, l2_cache_size=1M, size=256M"]
    assert (one.cache, one.l2_cache_size, one.chain.size) == ("none", 1 << 20, 256 << 20)
    assert settings_of(one) == {"": one}
    assert parse_plan(plan_text(plan)) == plan
    cells = cells_of(plan)
    assert {cell.setting for cell in cells} == set(settings)
    assert len({name for cell in cells for name in cell.sample_names}) == 4 * 2 * 3


def test_what_reads_files_is_varied_for_host_reads_too():
    plan = parse_plan(SMALL.replace("depths = [1]", 'depths = [1]\naio = "auto"') + '[vary]\naio = ["threads"]\n')
    (one,) = settings_of(plan).values()
    assert one.host_read.aio == ""


@pytest.mark.parametrize(
    ("vary", "said"),
    [
        ('aio = ["threads", "native"]', 'vary: aio=native: aio: "native" needs cache "none" or "directsync"'),
        ('size = ["256M", "16M"]', "vary: size=16M: chain.size: should be greater than or equal to"),
        ('cache = ["none", "none"]', "vary.cache: 'none' stands twice"),
    ],
)
def test_a_combination_that_does_not_hold_is_refused(vary, said):
    with pytest.raises(PlanError, match=said.replace("(", r"\(")):
        settings_of(parse_plan(SMALL + f"[vary]\n{vary}\n"))


def test_caches_of_tests_that_take_none_are_refused():
    with pytest.raises(PlanError, match="l2_cache_size: not for the tests limits, profile"):
        parse_plan(SMALL.replace('["host"]', '["host", "profile", "limits"]') + '[vary]\nl2_cache_size = ["1M"]\n')


def test_one_value_more_extends_a_plan_and_another_dimension_does_not():
    def varied(text):
        return parse_plan(SMALL + f"[vary]\n{text}\n")

    few, more = varied('cache = ["none"]'), varied('cache = ["none", "unsafe"]')
    assert extends(more, few)
    assert not extends(few, more)
    assert not extends(few, parse_plan(SMALL))
    assert not extends(varied('cache = ["none"]\niothread = [true]'), few)


def test_settings_are_sorted_by_their_values():
    names = ["l2_cache_size=64k", "l2_cache_size=1M", "l2_cache_size=512k", "l2_cache_size=default"]
    assert sorted(names, key=natural) == [names[3], names[0], names[2], names[1]]


@pytest.fixture
def chain(tmp_path):
    plan = parse_plan(SMALL)
    chain = ChainDirectory(tmp_path / "chains" / plan.chain_key())
    with chain.lock(exclusive=True):
        build_offline(plan.chain, chain, Silent())
    return chain


@pytest.mark.integration
@pytest.mark.parametrize("lift", ["none", "index", "squash"])
def test_every_layer_has_the_cache_that_the_plan_says_and_reads_the_same(chain, tmp_path, lift):
    plan = parse_plan(SMALL).model_copy(update={"l2_cache_size": 96 << 10, "l2_cache": "all"})
    with (
        scratch_directory(tmp_path / "chains") as scratch,
        ActiveLayers(chain, scratch).copy(find_qemu(), 3, lift) as image,
    ):
        options = with_caches(described(image), plan)
        caches, place = [], options
        while place is not None:
            caches.append((place.get("l2-cache-size"), place.get("l2-cache-entry-size")))
            place = place.get("backing")
        count = {"none": 4, "index": 2, "squash": 3}[lift]
        assert caches == [((96 << 10) // count, 4096)] * count
        nodes = as_blockdevs(options, "writeback")
        assert [node["l2-cache-size"] for node in nodes] == [(96 << 10) // count] * (count - 1)
        assert [node.get("backing") for node in nodes] == [None, *(f"layer-{n}" for n in range(count - 2))]
        daemon = ["qemu-storage-daemon", "--chardev", "stdio,id=m", "--monitor", "chardev=m"]
        daemon += [word for node in nodes for word in ("--blockdev", json.dumps(node))]
        quit_now = '{"execute": "qmp_capabilities"}\n{"execute": "quit"}\n'
        opened = subprocess.run(daemon, input=quit_now, capture_output=True, text=True)
        assert opened.returncode == 0, opened.stderr
        name = "json:" + json.dumps(options)
        compared = subprocess.run(["qemu-img", "compare", name, chain.layer(3)], capture_output=True, text=True)
        assert compared.stdout == "Images are identical.\n", compared.stderr


@pytest.mark.integration
def test_a_study_varies_caches_and_clusters_and_its_report_tells_them_apart(tmp_path):
    text = OFFLINE.format(chains=tmp_path / "chains").replace("repeats = 2", "repeats = 1")
    vary = '[vary]\nl2_cache_size = ["64k", "1M"]\ncluster_size = ["64k", "128k"]\n'
    results = run_study(parse_plan(text + vary), tmp_path / "out", Silent())
    settings = [
        f"l2_cache_size={cache}, cluster_size={cluster}" for cache in ("64k", "1M") for cluster in ("64k", "128k")
    ]
    assert {s.setting for s in results.samples()} == set(settings)
    assert len(results.samples()) == 4 * 2 * 3
    assert all(s.outcome == "ok" for s in results.samples())
    assert len(list((tmp_path / "chains").glob("offline-3-*"))) == 2
    run_study(parse_plan(text + vary), tmp_path / "out", Silent())
    assert len(results.samples()) == 4 * 2 * 3
    table = next(t for t in document([results.path]).tables if t.title.startswith("Host read: 4 KiB"))
    assert any(settings[0] in str(row.values()) for row in table.rows)
    assert settings[3] in write_report([results.path]).read_text(encoding="utf-8")
