"""Index, squash and restore under a running VM: what a lift is at rest, with a pivot as its switch."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chainlift.errors import ChainliftError, ImageError
from chainlift.lift.build.workspace import Workspace
from chainlift.lift.disk import Change
from chainlift.lift.lifting import prepare_index
from chainlift.lift.live.disk import compare_changes, has_switched, refuse_other_chain
from chainlift.lift.live.layers import layers_under, standing
from chainlift.lift.live.switch import switch_live
from chainlift.lift.record.source import find_source, points_into
from chainlift.lift.restore import original_pointer, refuse_if_used
from chainlift.lift.tidy import remove_unused

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from chainlift.lift.lifting import Prepared
    from chainlift.lift.live.pivot import State
    from chainlift.lift.live.session import LiveSession
    from chainlift.lift.live.steps import Timings
    from chainlift.lift.record.manifest import Manifest, Pointer
    from chainlift.qemu.binary import Qemu

#: From here on every change of the graph polls all nodes there are (``bdrv_drain_all_begin()`` in block.c).
_POLLS_ALL: Final = (10, 1, 0)
#: So many extents of an index keep QEMU's main loop for less than 0.1 s when they are added or closed, from this
#: version on: one costs 0.2 ms on 7.2, 0.4 ms on 10.0.
_GENTLE_EXTENTS: Final = (((9, 0, 0), 192), ((0, 0, 0), 384))
#: Where all nodes are polled, what counts is extents times layers: this many take 0.2 s.
_GENTLE_PAIRS: Final = 10_000
_FEWEST_EXTENTS: Final = 8
#: How much may be copied to have no more than those.
_GENTLE_COPY_BYTES: Final = 1 << 30


def prepare_live_index(
    session: LiveSession, *, copy_budget_bytes: int | None = None, progress: Callable[[int], None] | None = None
) -> AbstractContextManager[Prepared]:
    """Return the building of an index of a running disk's chain, not entered yet.

    :param copy_budget_bytes: None copies the smallest layers, up to 1 GiB, as far as it takes to have few extents.
    """
    if copy_budget_bytes is not None:
        return prepare_index(session.image, copy_budget_bytes=copy_budget_bytes, progress=progress)
    if session.version >= _POLLS_ALL:
        layers = len(session.graph.backing_chain(session.disk.node))
        most = max(_FEWEST_EXTENTS, _GENTLE_PAIRS // layers)
    else:
        most = next(most for first, most in _GENTLE_EXTENTS if session.version >= first)
    return prepare_index(session.image, copy_budget_bytes=_GENTLE_COPY_BYTES, most_extents=most, progress=progress)


@dataclass(frozen=True)
class LiveResult:
    """What a live verb did."""

    manifest: Manifest
    timings: Timings
    #: Nodes that were to go and could not.
    left: list[str]


def lift_live(
    session: LiveSession,
    prepare: AbstractContextManager[Prepared],
    *,
    qemu: Qemu | None,
    content: bool = False,
    progress: Callable[[int], None] | None = None,
    after: Callable[[State], None] | None = None,
) -> LiveResult:
    """Build a lift beside a running disk and switch the disk to it.

    :param prepare: of :mod:`chainlift.lift.lifting`, not entered yet.
    :param qemu: whose storage daemon reads a sample of the lift to compare it; None compares nothing.
    :param content: compare all of it.
    :param progress: called with the bytes compared so far.
    :raise InputError: if the disk must not be switched.
    :raise AnswerIsNo: if what was compared differs; nothing was switched.
    :raise QemuError: if a step failed; everything is as before.
    """
    refuse_other_chain(session)
    with prepare as prepared:
        manifest = prepared.manifest
        change = _change(session, manifest.lifted)
        try:
            if qemu is not None:
                compare_changes(session, [change], qemu, content=content, progress=progress)
            # Building may have taken minutes: what was allowed before must still be.
            session.refresh()
            session.check()
            refuse_other_chain(session)
            persist = not (session.is_libvirts and manifest.kind == "index")
            pivot = switch_live(session, [change], persist=persist, after=after)
        except ChainliftError:
            if not has_switched(session, [change]):
                # The first error is the one to tell.
                with suppress(OSError, ChainliftError):
                    prepared.discard()
            raise
        prepared.settle()
        return LiveResult(manifest, pivot.timings, pivot.left)


def _change(session: LiveSession, pointer: Pointer) -> Change:
    """Return the change of the active layer's pointer."""
    now = standing(session.graph, session.disk.node, session.image)[0].pointer
    if now is None:
        raise ImageError("stands on nothing in QEMU: there is no chain to lift", path=session.image)
    return Change(session.image, now, pointer)


def restore_live(
    session: LiveSession, *, clean: bool = False, after: Callable[[State], None] | None = None
) -> LiveResult:
    """Switch a running disk back to the chain that it had before it was lifted.

    :param clean: also remove the lift's files.
    :raise ImageError: if the image is not lifted, or a layer is not there any more, or (with ``clean``) another image
        stands on the lift; nothing was touched.
    :raise QemuError: if a step failed; everything is as before.
    """
    image = session.image
    source = find_source(image)
    manifest = source.manifest
    # Not `is_lifted`: a run killed before its switch has left a newer manifest than the lift that is in use.
    now = standing(session.graph, session.disk.node, image)[0].pointer
    if manifest is None or now is None or not points_into(image, now):
        raise ImageError("is not lifted", path=image, hint="there is nothing to restore")
    if clean:
        refuse_if_used(image, manifest)
    refuse_other_chain(session)
    pointer = original_pointer(manifest)
    for layer in layers_under(image, pointer):
        if not layer.path.exists():
            raise ImageError("is gone", path=layer.path, hint="the chain cannot be restored without it")
    with Workspace(image).hold() as workspace:
        pivot = switch_live(session, [Change(image, now, pointer)], after=after)
        if clean:
            remove_unused(workspace, manifest, keep=[])
    return LiveResult(manifest, pivot.timings, pivot.left)


def be_gentle() -> None:
    """Let others go first, on the processor and on the disk: what we build beside a VM is in no hurry."""
    with suppress(OSError):
        os.nice(10)
    with suppress(OSError, AttributeError):
        _idle_io()


def _idle_io() -> None:
    import ctypes
    import platform

    number = {"x86_64": 251, "aarch64": 30}[platform.machine()]  # ioprio_set(2), which glibc does not wrap
    ioprio_who_process, ioprio_class_idle = 1, 3 << 13
    ctypes.CDLL(None, use_errno=True).syscall(number, ioprio_who_process, 0, ioprio_class_idle)
