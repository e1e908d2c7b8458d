"""chainlift killed before and after commands that change QEMU, and QEMU killed at the same places."""

import os
import shutil
import signal
import sys
import time
import traceback
from contextlib import suppress

import pytest
from tests.support.daemon import read_all
from tests.support.lifts import live_index, live_restore, live_squash
from tests.support.owned_chain import everything

from chainlift.errors import ChainliftError, ImageError, InputError
from chainlift.lift.disk import Change
from chainlift.lift.live import closing
from chainlift.lift.live.disk import RunningDisk
from chainlift.lift.live.graph import query_graph
from chainlift.lift.live.session import open_session
from chainlift.lift.live.stream import stream_live
from chainlift.lift.record.manifest import Pointer
from chainlift.lift.record.pointer import named_in
from chainlift.qemu import monitor as qmp
from chainlift.qemu.find import find_qemu
from chainlift.qemu.monitor import Monitor

pytestmark = [pytest.mark.integration, pytest.mark.no_cover]
CHANGING = (
    "blockdev-add", "blockdev-del", "blockdev-reopen", "change-backing-file", "x-blockdev-set-iothread", "block-stream",
    "job-finalize",
)  # fmt: skip


@pytest.fixture(autouse=True)
def steps_of_one_layer(monkeypatch):
    """The old chain is closed in steps of one layer, however fast QEMU is: always the same commands."""
    monkeypatch.setattr(closing, "_STEP_S", 0.0)


def run(verb, daemon) -> None:
    with open_session(daemon.qmp) as session:
        if verb == "stream":
            stream_live(session, qemu=None)
            return
        if verb.startswith("middle"):
            take_out_of_the_middle(session)
            return
        # As through libvirt: the image's header goes on naming the chain.
        session.is_libvirts = verb == "index of libvirt's"
        result = live_restore(session, clean=True) if verb == "restore" else live_index(session, qemu=None)
    assert result.left == []


def lift_and_snapshot(verb, chain, daemon) -> None:
    """Lift the disk and take two snapshots over it, so that the lift is in the middle of the chain."""
    lift = live_squash if verb == "middle of a squash" else live_index
    with open_session(daemon.qmp) as session:
        lift(session)
    node = "disk0"
    for name in ("first", "second"):
        overlay = str(chain.directory / f"{name}.qcow2")
        snapshot = {"node-name": node, "snapshot-file": overlay, "snapshot-node-name": name, "format": "qcow2"}
        daemon.monitor.execute("blockdev-snapshot-sync", snapshot)
        node = name


def take_out_of_the_middle(session) -> None:
    disk = RunningDisk(session, find_qemu())
    disk.check()
    (stands,) = [stands for stands in disk.standing() if stands.image.name == "active.qcow2"]
    if stands.pointer.name == "layer0005.qcow2":
        raise ImageError("is not lifted")
    disk.switch([Change(stands.image, stands.pointer, Pointer("layer0005.qcow2", "qcow2"))])
    assert disk.left == []


def run_again(verb, daemon) -> None:
    """The same verb again either does its work or says that it was done; or that a job of the killed run goes on."""
    for _ in range(100):
        try:
            run(verb, daemon)
        except ImageError as error:
            assert "is not lifted" in str(error) or (verb == "stream" and "has no backing file" in str(error))
        except InputError as error:
            assert "job" in str(error)
            time.sleep(0.1)
            continue
        return
    raise AssertionError("the job never ended")


class Counter:
    """Counts the commands that change QEMU, and kills somebody at one of them."""

    def __init__(self, when="", which=0, victim=0):
        self.when, self.which, self.victim, self.count = when, which, victim, 0
        self.plain = Monitor.execute

    def __enter__(self):
        def execute(monitor, command, arguments=None, **more):
            self.count += command in CHANGING
            here = command in CHANGING and self.count == self.which
            if here and self.when == "before":
                os.kill(self.victim, signal.SIGKILL)
            try:
                return self.plain(monitor, command, arguments, **more)
            finally:  # some are tried only, and refused
                if here and self.when == "after":
                    os.kill(self.victim, signal.SIGKILL)

        Monitor.execute = execute
        return self

    def __exit__(self, *_):
        Monitor.execute = self.plain


def run_and_die(verb, daemon, when, which) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            qmp._running_loop = None  # its thread is not in this process
            with Counter(when, which, os.getpid()):
                run(verb, daemon)
        except BaseException:  # noqa: BLE001
            traceback.print_exc()  # nobody else tells
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def count_commands(verb, daemon) -> int:
    with Counter() as counter:
        run(verb, daemon)
    return counter.count


def points(count: int, every: bool) -> list[tuple[str, int]]:
    chosen = range(1, count + 1) if every else (5, 6)
    return [(when, which) for which in chosen for when in ("before", "after")]


def chainlift_killed(make_chain, start_daemon, same_bytes, *, qemu: str, every: bool) -> int:
    chain = make_chain(6, virtual_size=8 << 20)
    daemon = start_daemon(chain.active, qemu=qemu)
    fresh = len(daemon.nodes())
    commands = {"index": count_commands("index", daemon)}
    lifted = len(daemon.nodes())
    commands["restore"] = count_commands("restore", daemon)
    assert len(daemon.nodes()) == fresh
    killed = 0
    for verb, other, nodes in (("index", "restore", lifted), ("restore", "index", fresh)):
        if verb == "restore":
            run("index", daemon)
        for when, which in points(commands[verb], every):
            run_and_die(verb, daemon, when, which)
            killed += 1
            same_bytes(chain.active, chain.files[-2])
            with daemon.client() as client:
                assert read_all(client) == everything(chain)
            run_again(verb, daemon)
            assert len(daemon.nodes()) == nodes, (verb, when, which)
            with daemon.client() as client:
                assert read_all(client) == everything(chain)
            run(other, daemon)
    return killed


def killed_on_new_chains(
    make_chain, start_daemon, same_bytes, *, verb: str, qemu: str, every: bool, victim: str = "chainlift"
) -> int:
    """Kill somebody where the disk reads through an index that its header does not name; each time on a new chain."""
    count = killed = 0
    left = [(when, which) for which in (6, 7, 9) for when in ("before", "after")]
    while True:
        chain = make_chain(6, virtual_size=8 << 20)
        daemon = start_daemon(chain.active, qemu=qemu)
        if not count:
            count = count_commands(verb, daemon)
            left = points(count, every) if every else left
        else:
            when, which = left.pop(0)
            if victim == "chainlift":
                run_and_die(verb, daemon, when, which)
            else:
                # After its last command a verb may have nothing left to ask QEMU, and not notice.
                with suppress(ChainliftError), Counter(when, which, daemon.process.pid):
                    run(verb, daemon)
                daemon.process.wait(120)
            killed += 1
            same_bytes(chain.active, chain.files[-2])
            if victim == "QEMU":
                daemon = start_daemon(chain.active, qemu=qemu)
            with daemon.client() as client:
                assert read_all(client) == everything(chain)
            run_again(verb, daemon)
            with daemon.client() as client:
                assert read_all(client) == everything(chain)
            same_bytes(chain.active, chain.files[-2])
            if verb == "stream":
                assert len(daemon.nodes()) == 2
                assert not list(chain.directory.glob("*.lift"))
            else:
                run("restore", daemon)
                with daemon.client() as client:
                    assert read_all(client) == everything(chain)
        daemon.process.kill()
        shutil.rmtree(chain.directory)
        if not left:
            return killed


def killed_in_the_middle(
    make_chain, start_daemon, same_bytes, *, verb: str, qemu: str, every: bool, victim: str = "chainlift"
) -> int:
    """Kill somebody while a header in the middle of the chain and the graph are changed, one after the other."""
    count = killed = 0
    left = [(when, which) for which in (5, 6, 7, 8) for when in ("before", "after")]
    while True:
        chain = make_chain(6, virtual_size=8 << 20)
        top = chain.directory / "second.qcow2"
        daemon = start_daemon(chain.active, qemu=qemu)
        lift_and_snapshot(verb, chain, daemon)
        if not count:
            count = count_commands(verb, daemon)
            left = points(count, every) if every else left
        else:
            when, which = left.pop(0)
            if victim == "chainlift":
                run_and_die(verb, daemon, when, which)
            else:
                with suppress(ChainliftError), Counter(when, which, daemon.process.pid):
                    run(verb, daemon)
                daemon.process.wait(120)
            killed += 1
            same_bytes(top, chain.files[-2])
            if victim == "QEMU":
                daemon = start_daemon(top, qemu=qemu)
            with daemon.client() as client:
                assert read_all(client) == everything(chain)
            run_again(verb, daemon)
        with daemon.client() as client:
            assert read_all(client) == everything(chain)
        same_bytes(top, chain.files[-2])
        graph = query_graph(daemon.monitor)
        # A file that the command line has named and nobody uses any more: whose it is cannot be known after a kill.
        needless = [name for name in graph.names if not graph.parents(name)]
        assert needless in ([], ["disk0-file"])
        assert len(graph.names) == 2 * (3 + 6) + len(needless)
        headers = {named_in(path) for path in (top, chain.directory / "first.qcow2", chain.active)}
        assert headers == {str(chain.directory / "first.qcow2"), str(chain.active), "layer0005.qcow2"}
        daemon.process.kill()
        shutil.rmtree(chain.directory)
        if not left:
            return killed


def qemu_killed(make_chain, start_daemon, same_bytes, *, qemu: str, every: bool) -> int:
    chain = make_chain(6, virtual_size=8 << 20)
    daemon = start_daemon(chain.active, qemu=qemu)
    commands = {"index": count_commands("index", daemon), "restore": count_commands("restore", daemon)}
    killed = 0
    for verb in ("index", "restore"):
        for when, which in points(commands[verb], every):
            if verb == "restore":
                run("index", daemon)
            # After its last command a verb may have nothing left to ask QEMU, and not notice.
            noticed = pytest.raises(ChainliftError, match="connection was lost")
            unnoticed = (when, which) == ("after", commands[verb])
            with suppress(ChainliftError) if unnoticed else noticed, Counter(when, which, daemon.process.pid):
                run(verb, daemon)
            daemon.process.wait(120)
            killed += 1
            same_bytes(chain.active, chain.files[-2])
            daemon = start_daemon(chain.active, qemu=qemu)
            with daemon.client() as client:
                assert read_all(client) == everything(chain)
            run_again(verb, daemon)
            if verb == "index":
                run("restore", daemon)
    return killed


@pytest.mark.qemu(since=(6, 1))
def test_chainlift_killed_leaves_a_disk_that_the_next_run_puts_in_order(make_chain, start_daemon, same_bytes, qemu):
    killed = chainlift_killed(make_chain, start_daemon, same_bytes, qemu=qemu, every=False)
    sys.stdout.write(f"chainlift was killed at {killed} points\n")
    assert killed == 8


@pytest.mark.qemu(since=(6, 1))
def test_qemu_killed_leaves_an_image_that_reads_the_same(make_chain, start_daemon, same_bytes, qemu):
    killed = qemu_killed(make_chain, start_daemon, same_bytes, qemu=qemu, every=False)
    sys.stdout.write(f"QEMU was killed at {killed} points\n")
    assert killed == 8


@pytest.mark.parametrize("verb", ["stream", "index of libvirt's"])
def test_chainlift_killed_while_the_header_names_the_old_chain(make_chain, start_daemon, same_bytes, verb):
    killed = killed_on_new_chains(make_chain, start_daemon, same_bytes, verb=verb, qemu="host", every=False)
    assert killed == 6


@pytest.mark.parametrize("verb", ["middle of an index", "middle of a squash"])
@pytest.mark.parametrize("victim", ["chainlift", "QEMU"])
def test_killed_while_a_pointer_in_the_middle_is_switched(make_chain, start_daemon, same_bytes, verb, victim):
    killed = killed_in_the_middle(
        make_chain, start_daemon, same_bytes, verb=verb, qemu="host", every=False, victim=victim
    )
    assert killed == 8


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.qemu(since=(6, 1))
@pytest.mark.parametrize("verb", ["middle of an index", "middle of a squash"])
@pytest.mark.parametrize("victim", ["chainlift", "QEMU"])
def test_killed_at_every_command_while_a_pointer_in_the_middle_is_switched(
    make_chain, start_daemon, same_bytes, verb, qemu, victim
):
    killed = killed_in_the_middle(make_chain, start_daemon, same_bytes, verb=verb, qemu=qemu, every=True, victim=victim)
    sys.stdout.write(f"{qemu}, {verb}: {victim} was killed at {killed} points\n")
    assert killed > 20


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.qemu(since=(6, 1))
@pytest.mark.parametrize("verb", ["stream", "index of libvirt's"])
@pytest.mark.parametrize("victim", ["chainlift", "QEMU"])
def test_killed_at_every_command_while_the_header_names_the_old_chain(
    make_chain, start_daemon, same_bytes, verb, qemu, victim
):
    killed = killed_on_new_chains(make_chain, start_daemon, same_bytes, verb=verb, qemu=qemu, every=True, victim=victim)
    sys.stdout.write(f"{qemu}, {verb}: {victim} was killed at {killed} points\n")
    assert killed > 20


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.qemu(since=(6, 1))
def test_chainlift_killed_at_every_command(make_chain, start_daemon, same_bytes, qemu):
    killed = chainlift_killed(make_chain, start_daemon, same_bytes, qemu=qemu, every=True)
    sys.stdout.write(f"{qemu}: chainlift was killed at {killed} points\n")
    assert killed > 40


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.qemu(since=(6, 1))
def test_qemu_killed_at_every_command(make_chain, start_daemon, same_bytes, qemu):
    killed = qemu_killed(make_chain, start_daemon, same_bytes, qemu=qemu, every=True)
    sys.stdout.write(f"{qemu}: QEMU was killed at {killed} points\n")
    assert killed > 40
