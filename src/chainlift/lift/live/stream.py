"""Streaming made fast: QEMU's own ``block-stream``, reading through an index instead of down the chain.

The pivot to the index is not made durable: the image's header names the old chain until the job is done, and then, by
QEMU's own hand, nothing. A VM that is killed meanwhile comes back on the old chain, and reads the same.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chainlift.errors import ChainliftError, QemuError, UnknownStateError
from chainlift.lift.compare.stock import compare_sample
from chainlift.lift.disk import Change
from chainlift.lift.live.disk import has_switched, refuse_other_chain
from chainlift.lift.live.job import StreamJob
from chainlift.lift.live.layers import refer
from chainlift.lift.live.lifts import prepare_live_index
from chainlift.lift.live.naming import open_options
from chainlift.lift.live.pivot import LOCKLESS
from chainlift.lift.live.session import read_pointer
from chainlift.lift.live.steps import Timings
from chainlift.lift.record.source import find_source
from chainlift.lift.restore import refuse_if_used
from chainlift.lift.target import Target, backing_target
from chainlift.lift.tidy import remove_needless

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chainlift.lift.live.session import LiveSession
    from chainlift.lift.record.source import Source
    from chainlift.qemu.binary import Qemu


@dataclass(frozen=True)
class StreamResult:
    """What streaming took."""

    bytes: int
    #: Of QEMU's job alone.
    job_s: float
    #: With building the index, both pivots and cleaning up.
    total_s: float
    timings: Timings


def stream_live(
    session: LiveSession,
    *,
    qemu: Qemu | None,
    rate_bytes_per_s: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> StreamResult:
    """Copy everything under the active layer into it, so that it stands alone; the disk stays in use.

    An image that is lifted already is streamed through its lift; else an index is built for the time it takes. Either
    is removed at the end.

    :param qemu: whose storage daemon reads a sample of the index to compare it; None compares nothing.
    :param rate_bytes_per_s: limit of QEMU's job; 0 for none.
    :param progress: called with the bytes that QEMU says are done, and all of them.
    :raise InputError: if the disk must not be switched.
    :raise QemuError: if a step or the job failed; the disk is where it was.
    :raise UnknownStateError: if it could not be put back there.
    """
    began = time.monotonic()
    session.check_stream()
    refuse_other_chain(session)
    if read_pointer(session.image) is None:
        remove_needless(session.image)  # of a run that was killed at its very end
    source = find_source(session.image)
    if source.manifest is not None and source.current.name != source.original.name:
        refuse_if_used(session.image, source.manifest)
        done, job_s = _stream(session, rate_bytes_per_s, progress)
        _tidy(session)
        remove_needless(session.image)
        return StreamResult(done, job_s, time.monotonic() - began, Timings())
    with prepare_live_index(session) as prepared:
        pivot = session.pivot()
        try:
            target = backing_target(session.image, prepared.manifest.lifted.name, prepared.manifest.lifted.format)
            if qemu is not None:
                compare_sample(qemu, session.image, target)
            session.refresh()
            session.check()
            refuse_other_chain(session)
            pivot.run(target, persist=False, release=False)
            # The layers can be closed while the job runs, but for a QEMU whose nodes have locks of their own.
            releasing = pivot.releasing()
            next(releasing, None)
            if session.version < LOCKLESS:
                deque(releasing, maxlen=0)
            try:
                done, job_s = _stream(session, rate_bytes_per_s, progress, releasing)
            except QemuError as error:
                _go_back(session, source, releasing, error)
                raise
            _tidy(session)
        finally:
            # The header never named the index: nobody needs its files but a QEMU that may still have them open.
            if not has_switched(session, [Change(session.image, source.current, prepared.manifest.lifted)]):
                prepared.discard()
    remove_needless(session.image)  # of a run that was killed, or of a lift that was restored and kept
    return StreamResult(done, job_s, time.monotonic() - began, pivot.timings)


def _go_back(session: LiveSession, source: Source, releasing: Iterator[None], cause: QemuError) -> None:
    """Put the disk back on the chain that its header has named all the while.

    :raise UnknownStateError: if that does not work.
    """
    try:
        deque(releasing, maxlen=0)
        session.refresh()
        target = Target(source.current.name, open_options(refer(session.image, source.current)))
        # Not written again: QEMU would then take the name for another one, see chainlift.lift.live.naming.
        session.pivot().run(target, persist=False)
    except (ChainliftError, OSError) as error:
        raise UnknownStateError(
            f"{cause}; the disk could not be put back on its chain ({error})",
            path=session.image,
            hint="if QEMU still runs, it may read through the index in the image's .lift directory: delete nothing and "
            "run the command again; if it has ended, the image is what its header says",
        ) from cause


def _tidy(session: LiveSession) -> None:
    """Remove the node of the index, which nothing stands on any more."""
    session.refresh()
    session.pivot().recover()


def _stream(
    session: LiveSession,
    rate_bytes_per_s: int,
    progress: Callable[[int, int], None] | None,
    meanwhile: Iterator[None] | None = None,
) -> tuple[int, float]:
    """Run QEMU's job to its end; return the bytes it went through and the seconds it took.

    :raise QemuError: if it fails or somebody cancels it.
    """
    began = time.monotonic()
    job = StreamJob(session.monitor, session.active())
    done = job.run(rate_bytes_per_s=rate_bytes_per_s, progress=progress, meanwhile=meanwhile)
    return done, time.monotonic() - began
