"""The machine of neighbours beside a libvirtd: domains, snapshots, checkpoints and incremental backups.

A run begins with one or two domains whose disks have chains (``BEGINNINGS``) and takes 15 steps: of other people
through virsh (``libvirt_steps``, ``libvirt_jobs``), and of ours under the domains and with their images at rest
(``libvirt_ours``). Besides what ``oracle`` says of every image:

* a full backup reads what the disk reads, and so does an incremental one over what the disk was at its checkpoint,
  unless ``--drop-bitmaps`` was given;
* a domain that is shut off or killed starts, and reads what its guest wrote, unless ``--force`` was given;
* snapshots go on working after a lift; block jobs, backups and checkpoints do, from the next start at the latest;
* where a definition says what the headers say, it does so after a verb of ours, unless ``--force`` was given.

``NEIGHBOURS_RUNS`` and ``NEIGHBOURS_COLLECT`` are as in ``test_machine``.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, run_state_machine_as_test
from tests.neighbours import oracle
from tests.neighbours.domains import LibvirtWorld
from tests.neighbours.libvirt_ours import OursWithLibvirt
from tests.neighbours.reader import Reader
from tests.neighbours.scenes import MIB, create, fill
from tests.support.libvirt import Libvirtd, Virsh, libvirtd
from tests.support.verbs import Verbs

pytestmark = [pytest.mark.integration, pytest.mark.no_cover, pytest.mark.needs("libvirt")]
SHRINK = [] if "NEIGHBOURS_COLLECT" in os.environ else [Phase.shrink]
#: By name: the layers of each domain's disk over its base, the layer of the first that the second's stands on, the
#: size in bytes, and whether names are absolute.
BEGINNINGS = {
    "one": ([4], None, MIB, True),
    "relative": ([3], None, 2 * MIB, False),
    "two": ([2, 1], None, MIB, True),
    "linked": ([3, 1], 1, MIB, True),
    "large": ([2], None, 4 * MIB, True),
}


def _make_images(world: LibvirtWorld, lengths: list[int], shared: int | None, size: int, absolute: bool) -> None:
    for name in ("pool", "clones", "lifts"):
        world.sh("mkdir", name)
    for number, length in enumerate(lengths, 1):
        stands = shared is not None and number > 1
        below = f"d1-{shared}.qcow2" if stands else None
        for layer in range(1 if stands else 0, length + 1):
            image = world.root / "pool" / f"d{number}-{layer}.qcow2"
            named = f"{world.root}/pool/{below}" if below and absolute else below
            create(world, image, named, None if below else size)
            fill(world, image, 7 * number + layer, size)
            below = image.name


def _machine(
    daemon: Libvirtd, virsh: Virsh, reader: Reader, verbs: Verbs, counts: Counter[str]
) -> type[OursWithLibvirt]:
    class NeighboursWithLibvirt(OursWithLibvirt):
        @initialize(
            beginning=st.sampled_from(sorted(BEGINNINGS)),
            described=st.booleans(),
            running=st.integers(0, 2),
            as_root=st.booleans(),
        )
        def begin(self, beginning: str, described: bool, running: int, as_root: bool) -> None:
            by = verbs if as_root or not daemon.as_user else partial(verbs, user=daemon.path.stat().st_uid)
            self.world = LibvirtWorld(daemon, virsh, reader, by, counts)
            self.world.script += [] if by is verbs else ["# Verbs of ours are run by the user whose the daemon is."]
            self.drawn = Counter()
            self.world.count("runs")
            lengths, shared, size, absolute = BEGINNINGS[beginning]
            _make_images(self.world, lengths, shared, size, absolute)
            for number, length in enumerate(lengths, 1):
                domain = self.world.add(f"vm{number}", self.world.root / "pool" / f"d{number}-{length}.qcow2")
                self.define_domain(domain, described=described)
                if running:
                    self.start_domain(domain)
                if running == 2:
                    self.check(domain)
                    self.write(domain, 40 * number, 20, number)

        def teardown(self) -> None:
            if not hasattr(self, "world"):
                return
            try:
                if not self.is_over:
                    self.end()
            except oracle.KnownViolation:
                pass
            finally:
                self.world.close()

        def end(self) -> None:
            """Shut every domain off and start it: its guest finds what it wrote."""
            for domain in list(self.running):
                self.destroy_domain(domain)
            broken = [line for image in self.world.images() for line in oracle.check_image(image)]
            assert not broken, f"{broken}\n{self.world.tell()}"
            for domain in self.world.domains:
                if domain.is_defined:
                    self.start_domain(domain)

    return NeighboursWithLibvirt


@pytest.fixture(scope="module")
def daemon():
    memory = Path("/dev/shm")
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > 1 << 30
    with libvirtd(memory if has_room else None) as started:
        started.path.chmod(0o711)
        yield started


def _run(daemon: Libvirtd, record_property, **how) -> None:
    counts: Counter[str] = Counter()
    virsh = Virsh()
    with Reader() as reader, Verbs(most_files=400) as verbs:
        try:
            run_state_machine_as_test(
                _machine(daemon, virsh, reader, verbs, counts),
                settings=settings(
                    stateful_step_count=15,
                    deadline=None,
                    print_blob=False,
                    suppress_health_check=list(HealthCheck),
                    **how,
                ),
            )
        except Exception as error:
            error.add_note(f"libvirtd: {daemon.complaints}")
            raise
        finally:
            virsh.close()
            record_property("steps of the machine of neighbours with libvirt", oracle.summary(counts))


@pytest.mark.timeout(1200)
def test_nobody_is_hurt_beside_libvirt(daemon, record_property):
    runs = int(os.environ.get("NEIGHBOURS_RUNS", "10"))
    _run(
        daemon,
        record_property,
        max_examples=runs,
        derandomize=True,
        database=None,
        phases=[Phase.generate, *SHRINK],
    )


@pytest.mark.long
@pytest.mark.timeout(6 * 3600)
def test_nobody_is_hurt_beside_libvirt_in_many_runs(daemon, record_property):
    runs = int(os.environ.get("NEIGHBOURS_RUNS", "150"))
    _run(daemon, record_property, max_examples=runs, phases=[Phase.generate, *SHRINK])
