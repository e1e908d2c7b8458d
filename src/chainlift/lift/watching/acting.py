"""One action on one disk, and the one line that the journal gets of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from chainlift.errors import ChainliftError, InputError, OperationError, UnknownStateError
from chainlift.host.virsh import Domain
from chainlift.lift.domain.open import open_domain_disk
from chainlift.lift.live.disk import RunningDisk
from chainlift.lift.live.session import open_session
from chainlift.lift.live.whose import ask_vm, nearest_mark
from chainlift.lift.prune.verb import prune
from chainlift.lift.verbs import index, squash
from chainlift.lift.watching import journal
from chainlift.lift.watching.domains import look_at_domain
from chainlift.lift.watching.where import described
from chainlift.units import counted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from chainlift.lift.prune.retention import Policy
    from chainlift.lift.prune.verb import Pruned
    from chainlift.lift.record.mark import Mark
    from chainlift.lift.verbs import Lifted
    from chainlift.lift.watching.looking import SeenDisk
    from chainlift.lift.watching.where import Where
    from chainlift.qemu.binary import Qemu

#: Layers over the base that a squash leaves: itself, and the active layer.
SQUASHED_LENGTH: Final = 2


Verb = Literal["index", "squash", "prune"]


@dataclass(frozen=True)
class Acted:
    """What came of an attempt to lift a disk."""

    #: ``indexed``, ``squashed``, ``pruned``, ``left alone`` (somebody said so meanwhile), ``given up`` (the watch
    #: ends), ``refused`` (nothing was touched), ``failed`` (all is as before) or ``unknown`` (is what is left).
    result: str
    took_s: float
    length: int
    image: str
    error: str | None = None
    extents: int | None = None
    copied_bytes: int = 0
    #: Name and time of the longest command.
    longest: tuple[str, float] | None = None
    lift: str | None = None
    #: What was left in QEMU, what was removed of older lifts.
    notes: tuple[str, ...] = ()
    verb: Verb = "index"
    #: Snapshots that were deleted, and what the file system got back.
    deleted: int = 0
    freed_bytes: int = 0
    #: Snapshots that no rule keeps, and that somebody needs.
    kept_back: frozenset[str] = frozenset()

    @property
    def is_done(self) -> bool:
        """Whether the chain is as it should be now."""
        return self.result in ("indexed", "squashed", "pruned")

    @property
    def priority(self) -> int:
        """Of its line in the journal."""
        if self.is_done or self.result == "left alone":
            return journal.INFO
        return {"given up": journal.NOTICE, "refused": journal.WARNING}.get(self.result, journal.ERROR)

    def line(self, about: str, where: Where) -> str:
        """Return the journal's line.

        :param about: VM and disk.
        """
        said = [f"{about}: {self.verb}: {self.result}"]
        if self.error is not None:
            said.append(self.error)
        said.append(f"length {self.length}")
        if self.extents is not None:
            said.append(counted(self.extents, "extent"))
        if self.result == "pruned":
            said.append(f"{counted(self.deleted, 'snapshot')} deleted, {self.freed_bytes} bytes freed")
        if self.is_done:
            said.append(f"{self.copied_bytes} bytes copied")
        said.append(f"{self.took_s:.3f} s")
        if self.longest is not None:
            said.append(f"longest command {self.longest[0]} {self.longest[1]:.4f} s")
        said += [f"image {self.image}", *([f"lift {self.lift}"] if self.lift else []), described(where), *self.notes]
        return ", ".join(said)


class _EndingError(OperationError):
    """The watch ends; everything is as before."""


def lift_disk(
    where: Where,
    disk: SeenDisk,
    *,
    directory: Path,
    is_paused: Callable[[Mark], bool],
    ends: Callable[[], bool],
    copy_budget_bytes: int | None,
    rate_bytes_per_s: int | None = None,
    policy: Policy | None = None,
    qemu: Qemu | None,
    timeout_s: float | None,
) -> Acted:
    """Lift a disk, unless somebody has said since it was looked at that it is to be left alone.

    At a socket it is indexed; through libvirt it is squashed, for libvirt starts no domain on an index; with a policy
    its snapshots are pruned. Never raises: what went wrong is in what is returned.

    :param directory: the state directory.
    :param is_paused: whether a mark pauses the disk.
    :param ends: whether the watch is to end: asked before the switch, which is never left half done.
    """
    began = time.monotonic()

    def go_on(_bytes: int = 0) -> None:
        if ends():
            raise _EndingError("the watch ends")

    def acted(result: str, error: str | None = None) -> Acted:
        verb: Verb = "prune" if policy is not None else "squash" if isinstance(where, Domain) else "index"
        return Acted(result, time.monotonic() - began, disk.length, str(disk.image), error, verb=verb)

    try:
        go_on()
        if policy is not None:
            pruned = _prune(where, disk, directory, is_paused, policy, qemu, timeout_s, go_on)
            return acted("left alone") if pruned is None else _told(acted("pruned"), *pruned)
        if isinstance(where, Domain):
            done = _squash(where, disk, directory, is_paused, rate_bytes_per_s, qemu, go_on)
        else:
            done = _index(where, disk, directory, is_paused, copy_budget_bytes, qemu, timeout_s, go_on)
    except _EndingError:
        return acted("given up", "the watch ends; everything is as before")
    except UnknownStateError as error:
        return acted("unknown", str(error))
    except InputError as error:
        return acted("refused", str(error))
    except ChainliftError as error:
        return acted("failed", str(error))
    except Exception as error:  # noqa: BLE001 - other VMs are to be looked after
        return acted("failed", f"{type(error).__name__}: {error}")
    if done is None:
        return acted("left alone")
    manifest = done.lifted.manifest
    suffix = ".qcow2" if isinstance(where, Domain) else ".vmdk"
    lift = next((known.path for known in manifest.files if known.path.endswith(suffix)), None)
    notes = [f"not cleaned up: {left}" for left in done.left]
    notes += [f"removed {path}" for path in done.lifted.tidied.removed]
    notes += [f"kept {path}: {why}" for path, why in done.lifted.tidied.kept.items()]
    return replace(
        acted("squashed" if isinstance(where, Domain) else "indexed"),
        extents=manifest.extents or None,
        copied_bytes=manifest.copied_bytes,
        longest=done.longest,
        lift=lift,
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Done:
    lifted: Lifted
    left: list[str]
    longest: tuple[str, float] | None = None


def _index(
    socket: Path,
    disk: SeenDisk,
    directory: Path,
    is_paused: Callable[[Mark], bool],
    copy_budget_bytes: int | None,
    qemu: Qemu | None,
    timeout_s: float | None,
    go_on: Callable[[int], None],
) -> _Done | None:
    with open_session(socket, node=disk.node, timeout_s=timeout_s) as session:
        found = nearest_mark(session.graph, disk.node, ask_vm(session.monitor, session.process), directory)
        if found is not None and is_paused(found[0]):
            return None
        running = RunningDisk(session, qemu)
        # Whoever lets this run by itself asks for its old indexes to be removed.
        lifted = index(running, copy_budget_bytes=copy_budget_bytes, clean=True, progress=go_on)
    longest = max(running.timings.commands, key=lambda command: command[1], default=None)
    return _Done(lifted, running.left, longest)


def _squash(
    domain: Domain,
    disk: SeenDisk,
    directory: Path,
    is_paused: Callable[[Mark], bool],
    rate_bytes_per_s: int | None,
    qemu: Qemu | None,
    go_on: Callable[[int], None],
) -> _Done | None:
    if _is_left_alone(domain, disk, directory, is_paused):
        return None
    running = open_domain_disk(domain, device=disk.name, qemu=qemu)
    lifted = squash(running, clean=True, rate_bytes_per_s=rate_bytes_per_s, progress=go_on)
    return _Done(lifted, [*running.warnings, *running.left])


def _prune(
    where: Where,
    disk: SeenDisk,
    directory: Path,
    is_paused: Callable[[Mark], bool],
    policy: Policy,
    qemu: Qemu | None,
    timeout_s: float | None,
    go_on: Callable[[int], None],
) -> tuple[Pruned, list[str]] | None:
    """Delete what no rule keeps; return what was done, and what was left."""
    if isinstance(where, Domain):
        if _is_left_alone(where, disk, directory, is_paused):
            return None
        domains = open_domain_disk(where, device=disk.name, qemu=qemu)
        done = prune(domains, policy.retention, only=policy.only, progress=go_on)
        return done, [*domains.warnings, *domains.left]
    with open_session(where, node=disk.node, timeout_s=timeout_s) as session:
        found = nearest_mark(session.graph, disk.node, ask_vm(session.monitor, session.process), directory)
        if found is not None and is_paused(found[0]):
            return None
        running = RunningDisk(session, qemu)
        return prune(running, policy.retention, only=policy.only, progress=go_on), running.left


def _is_left_alone(domain: Domain, disk: SeenDisk, directory: Path, is_paused: Callable[[Mark], bool]) -> bool:
    now = next((seen for seen in look_at_domain(domain, directory).disks if seen.name == disk.name), None)
    return now is not None and now.mark is not None and is_paused(now.mark[0])


def _told(acted: Acted, done: Pruned, left: list[str]) -> Acted:
    back = {fate.path: fate.why for fate in done.fates if fate.is_kept_back}
    back |= {str(path): why for path, why in done.left.items()}
    return replace(
        acted,
        image=str(done.image),
        copied_bytes=done.copied_bytes,
        deleted=sum(fate.goes for fate in done.fates),
        freed_bytes=done.freed_bytes,
        kept_back=frozenset(back),
        notes=tuple(f"not cleaned up: {each}" for each in left)
        + tuple(f"kept {path}: {why}" for path, why in back.items()),
    )
