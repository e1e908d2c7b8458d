"""What all steps share: the world, and how an image is chosen."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from tests.neighbours import oracle
from tests.neighbours.world import pick, pointer

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tests.neighbours.world import World
    from tests.support.running import Running
    from tests.support.verbs import Said

#: Which of the images (directories, names) there are: a number, taken modulo how many there are.
choice = range(840)
_MOST_IMAGES = 14


def step(
    weight: int = 1, when: Callable[[Base], bool] | None = None, **arguments: Sequence[object]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Mark a method as a step.

    It is no rule of its own: Hypothesis turns half of the rules off in every run, by chance, and likes to do the same
    again. A run in which nobody lifts anything shows nothing; so the one rule draws a number, and that decides.

    :param weight: how often it is taken, beside others.
    :param when: whether it can be taken now.
    :param arguments: what it is called with: of each sequence one.
    """

    def mark(function: Callable[..., None]) -> Callable[..., None]:
        function.weight, function.when, function.arguments = weight, when, arguments
        return function

    return mark


def possible_steps(machine: Base) -> list[str]:
    """Return the names of steps that can be taken now, each as often as its weight says."""
    marked = {
        name: function for name in dir(type(machine)) if hasattr(function := getattr(type(machine), name), "weight")
    }
    return [
        name
        for name, function in sorted(marked.items())
        if function.when is None or function.when(machine)
        for _ in range(function.weight)
    ]


def runs(machine: Base) -> bool:
    """Whether any QEMU of others runs."""
    return bool(machine.running)


class Base(RuleBasedStateMachine):
    """A machine over a world."""

    # Of larger numbers Hypothesis draws more small ones.
    @rule(number=st.integers(0, (1 << 24) - 1))
    def take_step(self, number: int) -> None:
        if not self.is_over:
            # It likes to draw the same again: that is another step then.
            self.drawn[number] += 1
            rng = random.Random(f"{number}/{self.drawn[number]}")
            function = getattr(self, rng.choice(possible_steps(self)))
            try:
                function(**{key: rng.choice(choices) for key, choices in function.arguments.items()})
            except oracle.KnownViolation:
                self.is_over = True

    world: World
    drawn: Counter[int]
    #: A violation that is known was met: the world is broken, and nothing more happens in this run.
    is_over = False

    @property
    def running(self) -> list[Running]:
        return [] if self.is_over else self.world.running

    def image(self, number: int) -> Path | None:
        """Return the image that is meant, if there is one."""
        images = self.world.images()
        return pick(images, number) if images and not self.is_over else None

    def overlay(self, number: int) -> Path | None:
        """Return the image that is meant of those that stand on another; most verbs want one."""
        images = [path for path in self.world.images() if self.pointer(path) is not None]
        return pick(images, number) if images and not self.is_over else None

    def pointer(self, image: Path) -> str | None:
        """Return the backing file's name in an image's header."""
        with image.open("rb") as file:
            return pointer(file.read(1 << 16))

    def is_full(self) -> bool:
        return self.is_over or len(self.world.images()) >= _MOST_IMAGES

    def others(self, kind: str, *argv: object) -> bool:
        """Do a step of other people."""
        if self.is_over:
            return False
        done = self.world.sh(*argv)
        self.world.count(f"others: {kind}")
        return done

    def ours(self, verb: oracle.Verb) -> Said | None:
        """Run a verb of ours and judge it."""
        if self.is_over:
            return None
        try:
            return oracle.run(self.world, verb)
        except oracle.KnownViolation:
            self.is_over = True
            return None

    def digest_of(self, running: Running) -> str:
        return oracle.digest(running.read())
