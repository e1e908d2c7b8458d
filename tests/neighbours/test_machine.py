"""A machine of neighbours: chainlift's verbs among the hands of everybody else who owns a disk.

A run begins with a chain and a linked clone (``scenes``) and takes 30 steps: of other people with images at rest
(``others``) and with QEMUs that run (``guests``), and of ours (``ours``,
``snapshots``). What must hold after each of ours says ``oracle``; a failure prints a script of shell commands that
repeats it. Verbs are run as a person runs them, in a process of their own (``tests.support.verbs``).

The count of steps by kind is printed at the end of the tests. To hunt: ``NEIGHBOURS_RUNS`` sets how many runs there
are, and with ``NEIGHBOURS_COLLECT=DIR`` a run that hurts somebody fails nothing: the shortest script of each kind of
violation is kept in that directory, with a list of all that were seen.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, run_state_machine_as_test
from tests.neighbours import oracle
from tests.neighbours.guests import Guests
from tests.neighbours.others import Others
from tests.neighbours.ours import Ours
from tests.neighbours.reader import Reader
from tests.neighbours.scenes import SCENES
from tests.neighbours.snapshots import Snapshots
from tests.neighbours.world import World
from tests.support.verbs import Verbs

pytestmark = [pytest.mark.integration, pytest.mark.no_cover]
SHRINK = [] if "NEIGHBOURS_COLLECT" in os.environ else [Phase.shrink]


def _machine(place: Path, reader: Reader, verbs: Verbs, counts: Counter[str]) -> type[Ours]:
    """Return the machine for runs in this place."""
    made: dict[str, list[str]] = {}

    class Neighbours(Ours, Snapshots, Others, Guests):
        @initialize(scene=st.sampled_from(sorted(SCENES)))
        def begin(self, scene: str) -> None:
            self.world = World(place / "w", reader, verbs, counts)
            self.drawn = Counter()
            self.world.count("runs")
            template = place / scene
            if scene not in made:
                for name in ("pool", "clones", "lifts"):
                    (self.world.root / name).mkdir()
                    self.world.script.append(f"mkdir {name}")
                SCENES[scene](self.world)
                made[scene] = list(self.world.script)
                shutil.copytree(self.world.root, template, symlinks=True)
            else:
                self.world.root.rmdir()
                shutil.copytree(template, self.world.root, symlinks=True)
                self.world.script = list(made[scene])

        def teardown(self) -> None:
            if not hasattr(self, "world"):
                return
            try:
                if not self.is_over:
                    for running in list(self.world.running):
                        self.world.end(running, kill=False)
                    broken = [line for image in self.world.images() for line in oracle.check_image(image)]
                    assert not broken, f"{broken}\n{self.world.tell()}"
            finally:
                self.world.close()

    return Neighbours


@pytest.fixture
def place():
    """Memory where there is room: the machine syncs and renames all the time."""
    memory = Path("/dev/shm")
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > 1 << 30
    with tempfile.TemporaryDirectory(prefix="neighbours-", dir=memory if has_room else None) as name:
        Path(name).chmod(0o711)
        yield Path(name)


def _run(place: Path, record_property, **how) -> None:
    counts: Counter[str] = Counter()
    with Reader() as reader, Verbs(most_files=400) as verbs:
        try:
            run_state_machine_as_test(
                _machine(place, reader, verbs, counts),
                settings=settings(
                    stateful_step_count=30,
                    deadline=None,
                    print_blob=False,
                    suppress_health_check=list(HealthCheck),
                    **how,
                ),
            )
        finally:
            record_property("steps of the machine of neighbours", oracle.summary(counts))


@pytest.mark.timeout(1200)
def test_nobody_is_hurt(place, record_property):
    runs = int(os.environ.get("NEIGHBOURS_RUNS", "30"))
    _run(
        place,
        record_property,
        max_examples=runs,
        derandomize=True,
        database=None,
        phases=[Phase.generate, *SHRINK],
    )


@pytest.mark.long
@pytest.mark.timeout(6 * 3600)
def test_nobody_is_hurt_in_many_runs(place, record_property):
    runs = int(os.environ.get("NEIGHBOURS_RUNS", "2000"))
    _run(place, record_property, max_examples=runs, phases=[Phase.generate, *SHRINK])
