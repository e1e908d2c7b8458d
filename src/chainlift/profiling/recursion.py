"""Folding recursion: a cycle of frames that repeats down a stack becomes one frame with the number of its turns.

A read that falls through a chain of 300 layers passes the same few functions 300 times, so its stack is some thousand
frames deep and no two samples agree on their depth. Folded, they agree: *this cycle, so many turns, then that leaf*.

perf copies at most 64 KiB of a stack. A recursion deeper than that has lost its root: such a stack begins somewhere
inside a turn. That part of a turn counts to the recursion below it, and the stack gets :data:`CUT` as its root.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from chainlift.profiling.stacks import Stack, Stacks

#: The root of a stack whose real root is deeper than what the profiler copied.
CUT = "[deeper than the copied stack]"
#: The longest cycle that is looked for, in frames. One level of a chain takes 3 to 8, with debug symbols up to 20.
LONGEST_CYCLE = 32


class Frame(NamedTuple):
    """A frame of a folded stack: a function, or a cycle of functions.

    :ivar functions: the function, or the functions of one turn from the root towards the leaf.
    :ivar turns: how many turns; 0 for a plain frame.
    """

    functions: tuple[str, ...]
    turns: int = 0

    @property
    def label(self) -> str:
        """What the frame is called, whatever the number of turns."""
        return self.functions[0] if not self.turns else "\u21bb " + " \u2192 ".join(self.functions)


class Run(NamedTuple):
    """A stretch of a stack in which every frame equals the one ``period`` before it."""

    start: int
    length: int
    period: int


@dataclass(frozen=True)
class FoldedStacks:
    """Folded stacks and how many samples each had."""

    counts: Mapping[tuple[Frame, ...], int]

    @property
    def total(self) -> int:
        """All samples."""
        return sum(self.counts.values())


def fold_recursion(stacks: Stacks, cycles: Mapping[Stack, Stack] | None = None) -> FoldedStacks:
    """Fold the recursion of a profile. Samples are conserved: every stack keeps its count.

    :param cycles: what :func:`find_cycles` has found in this profile, or in several that are to be compared.
    """
    known = find_cycles([stacks]) if cycles is None else cycles
    found: Counter[tuple[Frame, ...]] = Counter()
    for stack, count in stacks.counts.items():
        found[fold_stack(stack, known)] += count
    return FoldedStacks(found)


def find_cycles(several: Iterable[Stacks]) -> dict[Stack, Stack]:
    """Find the cycles that repeat in these profiles.

    :return: a cycle's smallest rotation -> the rotation that is shown, the one by which most samples enter it.
    """
    votes: dict[Stack, Counter[Stack]] = {}
    for stacks in several:
        for stack, count in stacks.counts.items():
            for run in find_runs(stack):
                turn = stack[run.start : run.start + run.period]
                # Where the root is missing the stack begins anywhere in a turn: that says nothing about the entry.
                votes.setdefault(_smallest_rotation(turn), Counter())[turn] += count if run.start else 0
    return {key: min(turns, key=lambda turn: (-turns[turn], turn)) for key, turns in votes.items()}


def find_runs(stack: Stack) -> list[Run]:
    """Return the stretches of a stack that repeat, longest first where they overlap, in order; two turns at least."""
    runs = []
    position, end = 0, len(stack)
    while position < end:
        best = Run(position, 0, 1)
        for period in range(1, min(LONGEST_CYCLE, (end - position) // 2) + 1):
            stop = position + period
            while stop < end and stack[stop] == stack[stop - period]:
                stop += 1
            if stop - position >= 2 * period and stop - position > best.length:
                best = Run(position, stop - position, period)
        if best.length:
            runs.append(best)
        position += best.length or 1
    return runs


def fold_stack(stack: Stack, cycles: Mapping[Stack, Stack]) -> tuple[Frame, ...]:
    """Fold one stack.

    :param cycles: of :func:`find_cycles`; one that occurs once is folded too, so that it meets its deeper sisters.
    """
    folded: list[Frame] = []
    position = 0
    for run in find_runs(stack):
        folded += _single_turns(stack[position : run.start], cycles)
        piece = stack[run.start : run.start + run.length]
        turn = cycles.get(_smallest_rotation(piece[: run.period]), piece[: run.period])
        lead = next(offset for offset in range(run.period) if piece[offset : offset + run.period] == turn)
        turns, rest = divmod(run.length - lead, run.period)
        if run.start == 0:
            folded.append(Frame((CUT,)))
        else:
            folded += _single_turns(piece[:lead], cycles)
        folded.append(Frame(turn, turns))
        position = run.start + run.length - rest
    return (*folded, *_single_turns(stack[position:], cycles))


def _single_turns(frames: Stack, cycles: Mapping[Stack, Stack]) -> list[Frame]:
    turns = sorted(cycles.values(), key=len, reverse=True)
    folded: list[Frame] = []
    position = 0
    while position < len(frames):
        turn = next((turn for turn in turns if frames[position : position + len(turn)] == turn), None)
        folded.append(Frame(turn, 1) if turn else Frame((frames[position],)))
        position += len(turn) if turn else 1
    return folded


def _smallest_rotation(turn: Stack) -> Stack:
    return min(turn[offset:] + turn[:offset] for offset in range(len(turn)))
