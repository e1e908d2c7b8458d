from itertools import pairwise

import pytest

from chainlift.errors import PlanError
from chainlift.study.build_live import written_share
from chainlift.study.plan_file import SHIPPED, load_plan, parse_plan, shipped_text
from chainlift.study.plan_text import plan_text

SMALL = """
name = "small"
lengths = [1, 5]
[chain]
length = 5
size = "1G"
[chain.workload]
size = "64M"
"""


@pytest.mark.parametrize("name", SHIPPED, ids="plan-{}".format)
def test_a_shipped_plan_holds_and_is_named_as_its_file(name):
    assert load_plan(name).name == name


def test_the_seed_plan_has_the_experiments_parameters():
    plan = load_plan("seed")
    assert (plan.chain.size, plan.chain.length, plan.chain.interval_s, plan.chain.pace) == (20 << 30, 300, 10, 1)
    assert plan.lengths == (1, 20, 50, 100, 200, 300)
    job = plan.chain.workload
    assert (job.rw, job.rwmixread, job.bs, job.write_rate, job.size) == ("randrw", 90, 16384, 53 * 1024, 10 << 30)
    assert (plan.guest.memory, plan.guest.vcpus, plan.repeats) == (4 << 30, 4, 3)


@pytest.mark.parametrize("explain", [False, True])
@pytest.mark.parametrize("name", SHIPPED, ids="plan-{}".format)
def test_a_plan_written_out_reads_back_as_it_was(name, explain):
    plan = load_plan(name)
    text = plan_text(plan, explain=explain)
    assert parse_plan(text) == plan
    assert ("# " in text) == explain


def test_every_key_of_a_written_plan_is_explained():
    lines = plan_text(load_plan("quick"), explain=True).splitlines()
    for before, line in pairwise(lines):
        if " = " in line and not line.startswith("#"):
            assert before.startswith("#"), line


@pytest.mark.parametrize(
    ("change", "to", "said"),
    [
        (
            'name = "small"',
            'name = "small"\nlenghts = [1]',
            "lenghts: there is no such key; allowed here: name, lengths, ",
        ),
        (
            'size = "64M"',
            'size = "64M"\nspeed = 1',
            "chain.workload.speed: there is no such key; allowed here: rw, rwmixread",
        ),
        ('name = "small"', "", "name: this key is needed"),
        ("lengths = [1, 5]", "lengths = [1, 6]", "lengths: at most chain.length (5), 6 is more"),
        ("lengths = [1, 5]", "lengths = [0, 5]", "lengths: each from 1 to 5000"),
        ("lengths = [1, 5]", "lengths = [5, 5]", "lengths: 5 stands twice"),
        ("lengths = [1, 5]", "lengths = []", "lengths: "),
        ("lengths = [1, 5]", 'lengths = [1, 5]\ntests = ["raed"]', "tests.0: should be 'read', 'random', 'host'"),
        ("lengths = [1, 5]", "lengths = [1, 5]\nrepeats = 0", "repeats: should be greater than or equal to 1, not 0"),
        ("lengths = [1, 5]", 'lengths = [1, 5]\nrepeats = "3"', 'repeats: should be a valid integer, not "3"'),
        ("lengths = [1, 5]", "lengths = [1, 5]\nguest_lengths = [2]", "guest_lengths: 2 is not among lengths"),
        ("lengths = [1, 5]", "lengths = [1, 5]\nlift_lengths = [3]", "lift_lengths: 3 is not among lengths"),
        ("lengths = [1, 5]", 'lengths = [1, 5]\naio = "native"', 'aio: "native" needs cache "none" or "directsync"'),
        ('size = "1G"', 'size = "big"', "chain.size: 'big' is not a size (examples: 64k, 20G, 1048576)"),
        ('size = "1G"', 'size = "1G"\ncluster_size = 65535', "chain.cluster_size: a power of two from 512 to 2M"),
        ('size = "1G"', 'size = "1G"\ninterval_s = -1', "chain.interval_s: should be greater than 0, not -1"),
        ('size = "64M"', 'size = "1G"', "chain.workload.size: at most nine tenths of chain.size"),
        ('size = "1G"', "size = 2020-01-01", "has a date or time"),
        ("[chain]", "[chain", "is not TOML"),
    ],
)
def test_what_does_not_hold_is_named_with_what_is_allowed(change, to, said):
    assert change in SMALL
    with pytest.raises(PlanError) as caught:
        parse_plan(SMALL.replace(change, to, 1), path="my.toml")
    assert str(caught.value).startswith("my.toml: ")
    assert "{" not in str(caught.value)
    assert said in str(caught.value)
    assert caught.value.exit_status == 2


def test_a_plan_that_is_not_there_is_refused_with_the_names_of_those_that_are(tmp_path):
    with pytest.raises(PlanError, match=r"no such plan; name a TOML file or one of quick, seed, long"):
        load_plan(str(tmp_path / "none.toml"))


def test_a_plan_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(PlanError, match="is not UTF-8"):
        load_plan(str(tmp_path / "x.toml"))


def test_the_chains_key_is_of_the_chain_and_not_of_what_is_measured():
    plan = parse_plan(SMALL)
    assert parse_plan(SMALL.replace("[1, 5]", "[1, 2, 3]\nrepeats = 9")).chain_key() == plan.chain_key()
    assert parse_plan(SMALL.replace("length = 5", "length = 6")).chain_key() != plan.chain_key()
    assert parse_plan(SMALL + '\n[guest]\nkind = "debian"').chain_key() != plan.chain_key()


def test_what_a_guest_is_made_of_is_part_of_the_key_and_how_it_is_reached_is_not():
    own = SMALL + '\n[guest]\nkind = "own.qcow2"\n'
    assert parse_plan(own + 'ssh_key = "key"\nssh_user = "ubuntu"').chain_key() == parse_plan(own).chain_key()
    for option in ('append = "quiet"', 'firmware = "uefi"', 'directory = "/srv"', 'kernel = "vmlinuz"'):
        assert parse_plan(own + option).chain_key() != parse_plan(own).chain_key()


def test_the_key_of_the_seed_plans_chain_stays_the_same_in_every_release():
    # A chain takes an hour to build: writing a default out, or a new key with a default, must not lose it.
    plan = load_plan("seed")
    assert parse_plan(plan_text(plan)).chain_key() == plan.chain_key()
    assert plan.chain_key() == "live-300-97881f521233"


def test_shipped_plans_say_what_they_are():
    assert all(shipped_text(name).startswith("# ") for name in SHIPPED)


def test_a_compressed_interval_lasts_until_its_clusters_are_written():
    chain = load_plan("seed").chain
    requests = 53 * 1024 * 10 // 16384
    assert written_share(chain) == requests * 65536
    in_order = chain.model_copy(update={"workload": chain.workload.model_copy(update={"rw": "write"})})
    assert written_share(in_order) == 53 * 1024 * 10


def test_the_seed_plans_profiles_are_made_on_its_own_chain():
    assert load_plan("seed-profile").chain_key() == load_plan("seed").chain_key()
    assert load_plan("seed-profile").guest == load_plan("seed").guest


def test_the_authors_later_tests_share_a_chain():
    later, caches = load_plan("followup"), load_plan("followup-cache")
    assert later.chain_key() == caches.chain_key()
    assert later.guest == caches.guest


def test_another_image_in_the_same_place_makes_another_chain(tmp_path):
    image = tmp_path / "image"
    image.write_bytes(b"one")
    plan = parse_plan(f'{SMALL}\n[guest]\nkind = "{image}"')
    first = plan.chain_key()
    assert plan.chain_key() == first
    image.write_bytes(b"another")
    assert plan.chain_key() != first
