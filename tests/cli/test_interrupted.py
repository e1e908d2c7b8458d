"""Each verb is ended at random moments of its run, by Ctrl-C, SIGTERM and SIGKILL; what is left is counted.

Whoever could still undo something says that he was interrupted, and everything is as before. After the next verbs
nothing is left by anybody: no file, no socket, no process, no node and no job in QEMU.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.support.daemon import read_all, starting_daemons
from tests.support.owned_chain import everything, make_owned_chain

from chainlift.lift.record.pointer import read_pointer

pytestmark = [pytest.mark.integration, pytest.mark.no_cover, pytest.mark.timeout(3600)]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
LAYERS = 10
#: What a verb says of its search, before it deletes anything.
SEARCHED = "chainlift: searched "
#: Verbs that need more words than one.
WORDS = {"prune": ["prune", "--keep-last", "2"]}


@dataclass
class Scene:
    """A chain, at rest or in a daemon, and all that can be seen of it from outside."""

    place: Path
    is_live: bool
    environment: dict[str, str] = field(init=False)

    def __post_init__(self):
        self.temporary = Path(tempfile.mkdtemp(prefix="of-"))  # short: sockets lie there
        self.environment = {**os.environ, "TMPDIR": str(self.temporary)}
        self.chain = make_owned_chain(self.place / "chain", LAYERS, virtual_size=16 << 20, absolute_names=True)
        self.image = self.chain.active
        self.content = everything(self.chain)
        self._stack = ExitStack()
        start = self._stack.enter_context(starting_daemons(self.place))
        self.daemon = start(self.image) if self.is_live else None
        if self.daemon is None:
            (self.place / "content").write_bytes(self.content)

    def close(self):
        self._stack.close()
        self.temporary.rmdir()

    def words(self, *verb):
        where = ["--qmp", self.daemon.qmp] if self.daemon else [self.image]
        return [sys.executable, "-m", "chainlift", verb[0], *where, *verb[1:]]

    def start(self, *verb):
        process = subprocess.Popen(
            self.words(*verb), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=self.environment
        )
        while not catches(process.pid, signal.SIGTERM):
            assert process.poll() is None
        return process

    def run(self, *verb):
        done = subprocess.run(self.words(*verb), capture_output=True, text=True, env=self.environment)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def files(self):
        return sorted(str(path) for place in (self.place / "chain", self.temporary) for path in place.rglob("*"))

    def processes(self):
        """Those that know our temporary directory."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if str(self.temporary).encode() in (entry / "cmdline").read_bytes():
                    found.append(entry.name)
            except OSError:
                continue
        return found

    def in_qemu(self):
        if self.daemon is None:
            return ()
        return (len(self.daemon.nodes()), self.daemon.monitor.execute("query-jobs"), self.daemon.open_files())

    def seen(self):
        return (read_pointer(self.image)[1], self.files(), self.in_qemu())

    def seen_but_notes(self):
        """What an image stood on before a lift that was in use is kept beside it."""
        pointer, files, in_qemu = self.seen()
        return (pointer, [file for file in files if not file.endswith(".lift.json")], in_qemu)

    def reads_the_same(self):
        if self.daemon is not None:
            with self.daemon.client() as client:
                return read_all(client) == self.content
        command = ["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", self.image, self.place / "content"]
        return subprocess.run(command).returncode == 0


def catches(pid, number):
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return False
    mask = next((line.split()[1] for line in lines if line.startswith("SigCgt:")), "0")
    return bool(int(mask, 16) >> (number - 1) & 1)


def clean_up(scene):
    """Run the next verbs, until nothing is left to do."""
    while (done := scene.run("restore", "--clean")).returncode == 0:
        pass
    assert done.returncode == 2, done.stderr
    assert "is not lifted" in done.stderr, done.stderr


def prepare(scene, verb):
    if verb == "restore":
        assert scene.run("index").returncode == 0


def finish(scene, verb, done):
    """Do what was asked for once more, and take it back."""
    if verb == "stream":
        while (done := scene.run("stream")).returncode:
            # A job that a killed run has left goes on by itself; it is finished by the next run when it is done.
            assert done.returncode == 2, done.stderr
            if "has no backing file" in done.stderr:
                break
            assert "job" in done.stderr, done.stderr
            time.sleep(0.05)
        return
    if verb == "prune":
        again = scene.run(*WORDS[verb])
        assert again.returncode == 0, again.stderr
        return
    again = scene.run(verb)
    assert again.returncode == 0 or "nothing between" in again.stderr or "is not lifted" in again.stderr, again.stderr
    clean_up(scene)


def end_at_random(tmp_path, verb, *, is_live, times, seed):
    rng = random.Random(seed)
    scene, made = None, 0
    counts = {"undone": 0, "done": 0, "killed": 0}
    whole_s = None
    try:
        for _ in range(times):
            if scene is None:
                made += 1
                scene = Scene(tmp_path / f"scene{made}", is_live)
                clean = scene.seen()
            prepare(scene, verb)
            before = scene.seen()
            if whole_s is None:
                # How long a run takes is not known before: another scene is for that alone.
                other = Scene(tmp_path / "other", is_live)
                prepare(other, verb)
                process = other.start(*WORDS.get(verb, [verb]))
                began = time.monotonic()
                assert process.wait() == 0, process.stderr.read()
                whole_s = time.monotonic() - began
                process.stderr.close()
                other.close()
            number = rng.choice(SIGNALS)
            process = scene.start(*WORDS.get(verb, [verb]))
            time.sleep(rng.uniform(0, 1.05 * whole_s))
            process.send_signal(number)
            _, said = process.communicate()
            said = "".join(line for line in said.splitlines(keepends=True) if not line.startswith(SEARCHED))
            what = f"{number.name} in {verb}: status {process.returncode}, {said!r}"
            while scene.processes():  # they go when we have gone, not before
                time.sleep(0.01)
            if process.returncode == 128 + number:
                assert said == "chainlift: interrupted\n", what
                now = scene.seen()
                assert set(now[1]) ^ set(before[1]) == set(), what
                assert now == before, what
                counts["undone"] += 1
            elif process.returncode == 0:
                assert "interrupt" not in said, what
                counts["done"] += 1
            else:
                assert (number, process.returncode, said) == (signal.SIGKILL, -signal.SIGKILL, ""), what
                counts["killed"] += 1
            assert scene.reads_the_same(), what
            finish(scene, verb, process)
            assert scene.reads_the_same(), what
            if verb == "stream":
                assert scene.seen()[:2] == (None, before[1]), what
                assert scene.in_qemu()[:2] == (2, []), what
                scene.close()
                scene = None
            elif verb == "prune":
                left = {scene.chain.files[number].name for number in (0, LAYERS - 2, LAYERS - 1, LAYERS)}
                assert {Path(name).name for name in scene.files()} == left, what
                scene.close()
                scene = None
            else:
                assert scene.seen_but_notes() == clean, what
        sys.stdout.write(f"{verb}{' live' if is_live else ''}: {counts}\n")
    finally:
        if scene is not None:
            scene.close()


CASES = [(verb, False) for verb in ("index", "squash", "restore", "prune")]
CASES += [(verb, True) for verb in ("index", "squash", "restore", "stream", "prune")]


@pytest.mark.parametrize(("verb", "is_live"), CASES)
def test_a_verb_that_is_ended_leaves_nothing(tmp_path, request, verb, is_live):
    times = 30 if request.config.getoption("--long") else 3
    end_at_random(tmp_path, verb, is_live=is_live, times=times, seed=f"{verb} {is_live}")
