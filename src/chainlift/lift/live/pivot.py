"""The pivot: a running disk's backing node is exchanged, each transition with its undo.

:data:`TRANSITIONS` is all there is to know of which state is reached by what and undone by what, and :func:`way` of
which comes after which; docs/pivot.md is made from them. What they do is in :mod:`chainlift.lift.live.exchange`.

A failure undoes every transition, last first, whether or not it was come to: what there is to undo is read from QEMU
and from the headers. Where undoing fails too nobody knows what is left, and the error says so. After
:attr:`State.PERSISTED` a failure to release is reported and changes nothing more: the disk is switched, some nodes are
left.

*hold*: the ``raw`` node needs no file (it is added over ``null-co`` and reopened), and it does two things. The old
chain stays open whatever happens, so that undoing is one more reopen and opens nothing. And ``blockdev-reopen`` of the
active node never frees a node: freeing 300 layers at once stops QEMU's main loop for 0.05 s (7.2) to 0.9 s (11.1), and
where the disk is served by an iothread QEMU 7.2 dies of it (``qemu_mutex_unlock_impl: Operation not permitted``). Added
with the old chain as its child right away, the node would make 7.2 die as well; hence the detour, and
``x-blockdev-set-iothread`` before it.

*rename*: the header is changed on the old chain's node, which QEMU reopens for writing for that moment
(``qmp_change_backing_file()`` in blockdev.c). Before the new nodes are there, because they are opened as the headers
say, under the names that QEMU itself gives them; and because a second node on the same file would keep the first from
being written. Until the reopen the disk reads what it had open, whatever the headers say.

*add*: some layers of a chain in each command. The uppermost is opened as the child of the cover, which is deleted at
the end. So it is not the monitor's own: its only owner is then the disk's active node, and it goes with it when the
disk is unplugged, as a chain does that QEMU has opened by itself.

*release* has no undo. It moves the hold down the old chain, a few layers at a time, so that QEMU frees few at a time
and serves requests in between (:mod:`chainlift.lift.live.closing`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from chainlift import facts
from chainlift.errors import ChainliftError, QemuCrashed, QemuError, UnknownStateError
from chainlift.host import interrupts
from chainlift.lift.live.closing import closing
from chainlift.lift.live.exchange import Exchange
from chainlift.lift.live.recover import recover
from chainlift.lift.live.steps import PAUSE_S, ActiveNode, Steps, Timings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from chainlift.lift.live.exchange import Rename
    from chainlift.lift.live.qmp import Qmp
    from chainlift.lift.target import Target


class State(Enum):
    """How far a pivot has come."""

    START = "nothing done"
    HELD = "the old chain is held"
    RENAMED = "the headers in the middle of the chain name the new backing files"
    ADDED = "the new node is there"
    PIVOTED = "the disk reads through the new node"
    PERSISTED = "the image's header names the new backing file"
    DONE = "the old chain is closed"


@dataclass(frozen=True)
class Transition:
    """How a state is reached, and how to come back."""

    state: State
    do: Callable[[Exchange], None]
    undo: Callable[[Exchange], None]


#: What is undone is undone from the last to the first, whichever way was taken.
TRANSITIONS: Final = (
    Transition(State.HELD, Exchange.hold, Exchange.let_go),
    Transition(State.RENAMED, Exchange.rename, Exchange.rename_back),
    Transition(State.ADDED, Exchange.add, Exchange.remove),
    Transition(State.PIVOTED, Exchange.reopen, Exchange.reopen_old),
    Transition(State.PERSISTED, Exchange.persist, Exchange.persist_old),
)


def way(*, renames: bool, persist: bool) -> tuple[Transition, ...]:
    """Return the transitions of a pivot in their order.

    :param renames: whether headers in the middle of the chain are changed.
    :param persist: whether the image's own is.
    """
    hold, rename, add, *switch = TRANSITIONS
    # Without renames, to add comes first: it may take long, and the shorter is the time in which others find a disk
    # that is half switched.
    first = (hold, rename, add) if renames else (add, hold)
    return (*first, *(switch if persist else switch[:-1]))


class Pivot:
    """One exchange of a backing node.

    :param version: of the QEMU.
    :param read_pointer: reads the backing file name that the image's header has on disk now.
    :param pause_s: between the small steps.
    :param after: called with each state that was reached; a test's place to stop.
    """

    def __init__(
        self,
        monitor: Qmp,
        active: ActiveNode,
        *,
        version: tuple[int, int, int],
        read_pointer: Callable[[Path], str | None],
        pause_s: float = PAUSE_S,
        after: Callable[[State], None] | None = None,
    ) -> None:
        self.state = State.START
        #: Nodes that could not be removed at the end.
        self.left: list[str] = []
        self._active = active
        self._steps = Steps(
            monitor,
            active,
            read_pointer=read_pointer,
            pause_s=pause_s,
            frees_in_reopen=facts.LOCKLESS.holds(version) or active.iothread is None,
        )
        self._after = after
        self._old: str | None = None

    @property
    def timings(self) -> Timings:
        """What each command took."""
        return self._steps.timings

    def run(
        self,
        target: Target,
        *,
        persist: bool = True,
        renames: Sequence[Rename] = (),
        name_layers: bool = False,
        release: bool = True,
    ) -> None:
        """Switch the disk to ``target``.

        :param persist: also write its name into the image's header.
        :param renames: headers under the active layer that are changed before the target is opened, lowest first.
        :param name_layers: open each layer of the target's backing chain by its own options, a few in each command, and
            what is under the last one as its header says.
        :param release: close the old chain at the end.
        :raise QemuError: if a step failed, or somebody has changed the disk meanwhile; everything is as before, but for
            what others have done.
        :raise UnknownStateError: if a step failed and could not be undone, or QEMU does not answer.
        :raise QemuCrashed: if a QEMU that is ours ended; each header names what it did before or after the switch.
        """
        exchange = Exchange(self._steps, target, persist=persist, renames=renames, name_layers=name_layers)
        self._old = exchange.old
        try:
            for transition in way(renames=bool(renames), persist=persist):
                transition.do(exchange)
                self._reached(transition.state)
        except QemuCrashed:
            raise
        except BaseException as error:
            changed = self._undo(exchange, error)
            if changed is not None and isinstance(error, QemuError):
                raise changed from error
            raise
        if release:
            interrupts.too_late()
            self.release()

    def release(self) -> None:
        """Close the old chain, gently. A failure is in :attr:`left`, not raised: the disk is switched.

        :raise UnknownStateError: if QEMU does not answer any more.
        """
        for _ in self.releasing():
            pass

    def releasing(self) -> Iterator[None]:
        """Do what :meth:`release` does, a step with each element that is asked for.

        Once the first is there, a run that is killed will be continued and not undone.
        """
        try:
            if self._old is not None:
                yield from closing(self._steps, self._old, bit_by_bit=self._steps.frees_in_reopen)
            # Also the cover: while the hold is there, it keeps what an undo would let go.
            self._steps.remove_ours()
        except QemuCrashed:
            raise
        except QemuError as error:
            try:
                self.left = [str(error), *self._steps.ours()]
            except QemuError as silent:
                raise UnknownStateError(
                    f"the disk was switched, and then {silent}: whether the old chain is closed is not known",
                    path=self._active.image,
                    hint="delete nothing of it; if QEMU still runs, run the command again, which closes it",
                ) from error
        else:
            self._reached(State.DONE)

    def recover(self) -> bool:
        """See :func:`chainlift.lift.live.recover.recover`: a run that was killed remembers no transition."""
        return recover(self._steps)

    def _undo(self, exchange: Exchange, cause: BaseException) -> QemuError | None:
        """Go back to the node that the disk had before, and every header to the name that it had.

        :return: what others have done meanwhile, if anything.
        """
        try:
            # A disk that is gone needs nothing but our nodes removed.
            is_there = self._active.name in self._steps.query_edges().names
            for transition in reversed(TRANSITIONS if is_there else TRANSITIONS[:1]):
                transition.undo(exchange)
            changed = exchange.check_undone()
        except QemuCrashed:
            raise
        except (ChainliftError, OSError) as error:
            known = [*exchange.describe_headers(), "what QEMU reads through is not known"]
            raise UnknownStateError(
                f"{cause}; it could not be undone ({error}): {', '.join(known)}",
                path=self._active.image,
                hint="both read the same bytes, so delete nothing; if QEMU still runs, run the command again: it "
                "finishes or undoes this first",
            ) from cause
        self.state = State.START
        return changed

    def _reached(self, state: State) -> None:
        self.state = state
        if self._after is not None:
            self._after(state)
