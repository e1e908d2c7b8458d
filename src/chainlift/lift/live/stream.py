"""Streaming made fast: QEMU's own ``block-stream``, reading through an index instead of down the chain.

The pivot to the index is not made durable: the image's header names the old chain until the job is done, and then, by
QEMU's own hand, nothing. A VM that is killed meanwhile comes back on the old chain, and reads the same.
"""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift import facts
from chainlift.chain import open_chain
from chainlift.errors import ChainliftError, InputError, QemuError, UnknownStateError
from chainlift.host import interrupts
from chainlift.lift.build.free_space import require_room, room_for_stream
from chainlift.lift.live.disk import RunningDisk, has_switched, refuse_other_chain
from chainlift.lift.live.job import StreamJob
from chainlift.lift.live.layers import refer
from chainlift.lift.live.steps import Timings
from chainlift.lift.neighbours.images import opened_without_header
from chainlift.lift.neighbours.neighbourhood import Neighbourhood
from chainlift.lift.prepare import prepare_index
from chainlift.lift.record.image_state import read_image_state
from chainlift.lift.target import Target, backing_target, open_options
from chainlift.lift.tidy import Tidied, remove_leftovers, remove_lifts
from chainlift.lift.verbs import GENTLE_COPY_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chainlift.lift.live.session import LiveSession
    from chainlift.lift.record.image_state import ImageState
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
    #: Lifts that the disk stood on before: removed where that was asked for.
    tidied: Tidied = field(default_factory=Tidied)


def stream_live(
    session: LiveSession,
    *,
    qemu: Qemu | None,
    rate_bytes_per_s: int = 0,
    drop_bitmaps: bool = False,
    clean: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> StreamResult:
    """Copy everything under the active layer into it, so that it stands alone; the disk stays in use.

    An image that is lifted already is streamed through its lift; else an index is built for the time it takes, and
    removed at the end.

    :param qemu: whose storage daemon reads a sample of the index to compare it; None compares nothing.
    :param rate_bytes_per_s: limit of QEMU's job; 0 for none.
    :param drop_bitmaps: go on although layers have persistent bitmaps, which the image will not have.
    :param clean: remove the lift that the image stood on, where nobody else needs it.
    :param progress: called with the bytes that QEMU says are done, and all of them.
    :raise InputError: if the disk must not be switched, or what the job copies does not fit beside the image.
    :raise QemuError: if a step or the job failed; the disk is where it was.
    :raise KeyboardInterrupt: if one came before the job was done; the job is cancelled, and the disk is where it was.
    :raise UnknownStateError: if it could not be put back there.
    """
    began = time.monotonic()
    session.check_stream()
    refuse_other_chain(session)
    _refuse_if_opened_without_header(session.image)
    remove_leftovers(session.image)  # of a run that was killed at its very end
    disk = RunningDisk(session, qemu)
    state = read_image_state(session.image, disk.standing()[0].pointer)
    needed_bytes = _require_room(session)
    if state.lift is not None:
        try:
            with interrupts.put_off():
                done, job_s = _stream(session, rate_bytes_per_s, progress)
        except QemuError as error:
            _require_answer(session, error)
            raise
        _tidy(session)
        remove_leftovers(session.image)  # where it was the index of a stream that was killed
        files = [file for file in (state.lift.file, *map(Path, state.lift.manifest.supersedes)) if file.exists()]
        tidied = remove_lifts(files, image=session.image) if clean else Tidied(kept=dict.fromkeys(files, ""))
        return StreamResult(done, job_s, time.monotonic() - began, Timings(), tidied)
    prepare = prepare_index(
        session.image,
        current=state.current,
        drop_bitmaps=drop_bitmaps,
        copy_budget_bytes=GENTLE_COPY_BYTES,
        most_extents=disk.most_extents,
    )
    # No header ever names this index, so its record goes on saying that nobody uses it.
    with prepare as prepared:
        pivot = session.pivot()
        try:
            target = backing_target(session.image, prepared.manifest.lifted.name, prepared.manifest.lifted.format)
            disk.compare([prepared.change])
            disk.check()
            # What the index has copied lies there as long as the job runs.
            if needed_bytes:
                require_room(_directory(session.image), needed_bytes)
            with interrupts.put_off():
                pivot.run(target, persist=False, release=False)
                # The layers can be closed while the job runs, but for a QEMU whose nodes have locks of their own.
                releasing = pivot.releasing()
                try:
                    next(releasing, None)
                    if not facts.LOCKLESS.holds(session.version):
                        deque(releasing, maxlen=0)
                    done, job_s = _stream(session, rate_bytes_per_s, progress, releasing)
                except (QemuError, KeyboardInterrupt) as error:
                    _go_back(session, state, releasing, error)
                    raise
                _tidy(session)
        finally:
            # The header never named the index: nobody needs its files but a QEMU that may still have them open.
            if not has_switched(session, [prepared.change]):
                prepared.discard()
    return StreamResult(done, job_s, time.monotonic() - began, pivot.timings)


def _refuse_if_opened_without_header(image: Path) -> None:
    """Refuse where somebody would read what QEMU's job copies into the image, and not what the image reads.

    A directory that cannot be searched is no reason to refuse: hardly anybody opens an image so.
    """
    try:
        others = opened_without_header(image, Neighbourhood(image).files)
    except (InputError, OSError):
        return
    if others:
        raise InputError(
            f"is opened without its own backing file by {others[0]} (the json: name in that image's header), which "
            "would read other bytes once more is copied into this one",
            path=image,
            hint="let that image stand on a copy (qemu-img convert), or see chainlift index",
        )


def _require_room(session: LiveSession) -> int:
    """Refuse where QEMU would run out of room, which its guest would notice; return how many bytes it may need."""
    with open_chain(session.image) as chain:
        active = chain.layers[0].image
        if active is not None and active.header.extended_l2 and facts.READ_SUBCLUSTERS.holds(session.version):
            raise InputError(
                f"QEMU {'.'.join(map(str, session.version))} dies of block-stream into an image with subclusters "
                "(extended_l2)",
                path=session.image,
                hint="use QEMU from 8.1 on, or stop the VM and see chainlift flatten",
            )
        needed_bytes = room_for_stream(chain)
    if session.image.is_block_device():
        return 0
    require_room(_directory(session.image), needed_bytes)
    return needed_bytes


def _directory(image: Path) -> Path:
    return Path(os.path.realpath(image)).parent


def _go_back(session: LiveSession, state: ImageState, releasing: Iterator[None], cause: BaseException) -> None:
    """Put the disk back on the chain that its header has named all the while.

    :raise UnknownStateError: if that does not work.
    """
    try:
        deque(releasing, maxlen=0)
        session.refresh()
        # An interrupt ends the closing of the old chain in the middle: it is opened again, or closed to its end.
        session.pivot().recover()
        session.refresh()
        nodes = session.graph.backing_chain(session.disk.node)
        if len(nodes) > 1 and not session.graph.is_index(nodes[1]):
            return
        target = Target(state.current.name, open_options(refer(session.image, state.current)))
        # Not written again: QEMU would then take the name for another one, see chainlift.lift.live.naming.
        session.pivot().run(target, persist=False)
    except (ChainliftError, OSError) as error:
        raise UnknownStateError(
            f"{cause}; the disk could not be put back on its chain ({error})",
            path=session.image,
            hint="if QEMU still runs, it may read through the index in the image's .lift directory: delete nothing and "
            "run the command again; if it has ended, the image is what its header says",
        ) from cause


def _require_answer(session: LiveSession, cause: QemuError) -> None:
    """Tell a job that failed from a QEMU that cannot be asked what has become of it.

    :raise UnknownStateError: if it does not answer.
    """
    try:
        session.refresh()
    except QemuError as error:
        raise UnknownStateError(
            f"{cause}; whether the job is done is not known ({error})",
            path=session.image,
            hint="if QEMU still runs, run the command again; if it has ended, the image is what its header says",
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
