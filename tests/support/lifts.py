"""The verbs as most tests call them: on an image at rest, or on a session of a running QEMU."""

from dataclasses import dataclass

from chainlift.lift import verbs
from chainlift.lift.at_rest import DiskAtRest
from chainlift.lift.live.disk import RunningDisk
from chainlift.lift.plan import plan
from chainlift.lift.verify import verify


def lift_index(image, qemu, **options):
    return verbs.index(DiskAtRest(image, qemu), **options).manifest


def lift_squash(image, qemu, *, delete_in=None, **options):
    done = verbs.squash(DiskAtRest(image, qemu), delete_layers_in=delete_in, **options)
    return done.manifest, done.deletion


def restore_lift(image, qemu, **options):
    return verbs.restore(DiskAtRest(image, qemu), **options)


def plan_lift(image, **options):
    return plan(DiskAtRest(image, None), **options)


def verify_lift(image, qemu=None, **options):
    """The record of the uppermost lift, and the findings of all."""
    verified = verify(DiskAtRest(image, qemu), **options)
    return verified[0].lift.manifest, [finding for lift in verified for finding in lift.findings]


@dataclass
class LiveResult:
    manifest: object
    timings: object
    left: list


def _live(session, verb, qemu, after, options):
    disk = RunningDisk(session, qemu, after=after)
    done = verb(disk, **options)
    return LiveResult(getattr(done, "manifest", None), disk.timings, disk.left)


def live_index(session, *, qemu=None, after=None, **options):
    return _live(session, verbs.index, qemu, after, options)


def live_squash(session, *, qemu=None, after=None, **options):
    return _live(session, verbs.squash, qemu, after, options)


def live_restore(session, *, qemu=None, after=None, **options):
    return _live(session, verbs.restore, qemu, after, options)
