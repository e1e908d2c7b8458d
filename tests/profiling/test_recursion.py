from hypothesis import given, settings
from hypothesis import strategies as st

from chainlift.profiling.recursion import CUT, Frame, find_cycles, fold_recursion, fold_stack
from chainlift.profiling.stacks import Stacks

# Few names, so that cycles happen; some stacks are made of turns on purpose.
names = st.sampled_from("abcd")
pieces = st.lists(names, max_size=5)
deep = st.builds(lambda head, turn, n, tail: (*head, *turn * n, *tail), pieces, pieces, st.integers(0, 40), pieces)
profiles = st.dictionaries(deep, st.integers(1, 50), max_size=12).map(Stacks)


@settings(max_examples=60)
@given(profiles)
def test_sample_counts_are_conserved(stacks):
    assert fold_recursion(stacks).total == stacks.total


@settings(max_examples=60)
@given(profiles)
def test_unfolding_gives_the_stack_back_but_for_a_cut_root(stacks):
    cycles = find_cycles([stacks])
    for stack in stacks.counts:
        folded = fold_stack(stack, cycles)
        cut = folded[:1] == (Frame((CUT,)),)
        unfolded = tuple(name for frame in folded[cut:] for name in frame.functions * max(frame.turns, 1))
        assert stack[len(stack) - len(unfolded) :] == unfolded
        missing = len(stack) - len(unfolded)
        # Only a part of one turn goes, and only where the stack begins inside a recursion.
        assert missing < len(folded[1].functions) if cut else missing == 0


@settings(max_examples=60)
@given(profiles)
def test_the_leaf_stays_the_leaf(stacks):
    for stack in filter(None, stacks.counts):
        assert fold_stack(stack, find_cycles([stacks]))[-1].functions[-1] == stack[-1]


def test_stacks_of_different_depth_meet():
    stacks = Stacks({("main", *"abc" * turns, "a", "leaf"): turns for turns in (1, 2, 150, 300)})
    folded = fold_recursion(stacks)
    labels = {tuple(frame.label for frame in stack) for stack in folded.counts}
    assert labels == {("main", "\u21bb a \u2192 b \u2192 c", "a", "leaf")}
    assert sorted(stack[1].turns for stack in folded.counts) == [1, 2, 150, 300]


def test_a_cut_stack_meets_the_others_wherever_in_a_turn_it_begins():
    whole = ("main", *"abc" * 20, "leaf")
    cut = [(*"abcabcabcabc"[start:], "leaf") for start in range(3)]
    folded = fold_recursion(Stacks(dict.fromkeys([whole, *cut], 1)))
    assert {tuple(frame.label for frame in stack[1:]) for stack in folded.counts} == {
        ("\u21bb a \u2192 b \u2192 c", "leaf")
    }
    assert folded.counts[(Frame((CUT,)), Frame(("a", "b", "c"), 4), Frame(("leaf",)))] == 1
    assert folded.counts[(Frame((CUT,)), Frame(("a", "b", "c"), 3), Frame(("leaf",)))] == 2


def test_a_recursion_at_the_end_of_another_is_a_frame_of_its_own():
    # A read that falls through a chain, at every level of which bdrv_is_inserted walks what is below.
    stack = ("main", *("preadv", "qcow2") * 30, "preadv", *["inserted"] * 270)
    (folded,) = fold_recursion(Stacks({stack: 7})).counts
    assert folded == (
        Frame(("main",)),
        Frame(("preadv", "qcow2"), 30),
        Frame(("preadv",)),
        Frame(("inserted",), 270),
    )


def test_functions_that_call_themselves_are_no_mistake_for_ones_that_do_not():
    stack = ("main", "a", "b", "c")
    assert fold_stack(stack, {}) == tuple(Frame((name,)) for name in stack)


def test_folding_a_thousand_deep_stack_takes_no_recursion_of_ours():
    stack = ("main", *"abcdefg" * 3000)
    (folded,) = fold_recursion(Stacks({stack: 1})).counts
    assert folded[1].turns == 3000
