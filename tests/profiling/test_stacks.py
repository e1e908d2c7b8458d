import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainlift.errors import InputError
from chainlift.profiling.stacks import (
    Stacks,
    load_stacks,
    merge,
    profile_name,
    read_folded,
    save_stacks,
    to_speedscope,
    write_folded,
)

frames = st.text(st.characters(exclude_categories=("Z", "C"), exclude_characters=";"), min_size=1, max_size=6)
profiles = st.dictionaries(st.lists(frames, min_size=1, max_size=8).map(tuple), st.integers(1, 1000)).map(Stacks)


@settings(max_examples=60)
@given(profiles)
def test_folded_text_reads_back_as_it_was(stacks):
    assert read_folded(write_folded(stacks)).counts == stacks.counts


@settings(max_examples=60)
@given(st.lists(profiles, max_size=4))
def test_merging_conserves_samples(several):
    merged = merge(several)
    assert merged.total == sum(stacks.total for stacks in several)
    assert sum(merged.self_samples().values()) == merged.total


@settings(max_examples=60)
@given(profiles)
def test_speedscope_holds_every_sample_and_stack(stacks):
    file = to_speedscope(stacks, "x")
    names = [frame["name"] for frame in file["shared"]["frames"]]
    (profile,) = file["profiles"]
    back = {tuple(names[i] for i in s): w for s, w in zip(profile["samples"], profile["weights"], strict=True)}
    assert back == stacks.counts
    assert profile["endValue"] == stacks.total


def test_a_function_that_is_on_a_stack_twice_counts_once():
    stacks = read_folded("a;b;b;c 3\na;c 1\n")
    assert stacks.share_of("b") == 0.75
    assert stacks.share_of("b", "c") == 1
    assert stacks.share_of("x") == 0
    assert stacks.self_samples() == {"c": 4}


def test_samples_in_functions_without_a_name_are_the_unknown_share():
    stacks = read_folded("a;[unknown] 1\na;[qemu-img+0x1f00] 1\n[unknown];b 1\na;[kernel] 1\n")
    assert stacks.unknown_share == 0.5


def test_nothing_sampled_is_no_division_by_zero():
    assert Stacks({}).share_of("a") == Stacks({}).unknown_share == 0


@pytest.mark.parametrize("line", ["a;b", "a;b x", "a;b -1", "a;b 1.5", "a;b \u0663"])
def test_a_line_without_a_count_is_bad_input(line):
    with pytest.raises(InputError, match="line 2"):
        read_folded(f"a 1\n{line}\n")


def test_saved_stacks_read_back_and_are_small_and_the_same_every_time(tmp_path):
    stacks = Stacks({("main", *("preadv", "qcow2") * 300, f"leaf{i}"): i + 1 for i in range(300)})
    name = profile_name("read-4k", "debian:trixie", 300)
    first = [path.read_bytes() for path in save_stacks(tmp_path, name, stacks)]
    folded, speedscope = save_stacks(tmp_path, name, stacks)
    assert [folded.read_bytes(), speedscope.read_bytes()] == first
    assert folded.name == "read-4k--debian-trixie--300-layers.folded.gz"
    assert load_stacks(folded).counts == stacks.counts
    assert folded.stat().st_size < len(write_folded(stacks)) / 50


def test_a_profile_of_a_path_with_slashes_stays_in_its_directory():
    assert "/" not in profile_name("read", "/opt/../qemu build/bin", 1, "index", 2)


@pytest.mark.parametrize("content", [b"\x1f\x8bnonsense", b"\xff\xfe", b"no count\n"])
def test_what_holds_no_stacks_is_bad_input_and_named(tmp_path, content):
    path = tmp_path / "x.folded"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.folded"):
        load_stacks(path)
