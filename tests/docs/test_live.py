"""What docs/live.md shows, done as it is written there."""

import subprocess
import sys

import pytest
from tests.support.running import connected
from tests.support.sessions import sessions, typed

from chainlift.lift.live.steps import node_prefix
from chainlift.qcow2.writer import write_image

pytestmark = pytest.mark.integration

PAGE = "live.md"
CHAINLIFT = (sys.executable, "-m", "chainlift")


@pytest.fixture
def vm7(tmp_path):
    """The VM of the page: 300 layers over a base, started with the page's options."""
    below, names = None, ["base", *(f"snap-{n}" for n in range(1, 300)), "disk"]
    for number, name in enumerate(names):
        path = tmp_path / f"{name}.qcow2"
        write_image(
            path, virtual_size=64 << 20, backing_file=below, backing_format="qcow2" if below else None,
            clusters=[number] if name != "disk" else [], data=lambda cluster: bytes([cluster % 255 + 1]) * 65536,
        )  # fmt: skip
        below = str(path)
    replace = {"/srv/vm7": str(tmp_path), "/run/vm7.qmp": str(tmp_path / "qmp")}
    start = next(typed.command for (typed, *_) in sessions(PAGE) if typed.command.startswith("qemu-system"))
    program, _, *options = type(typed(PAGE)[0])(start, "").arguments(replace)
    argv = [program, "-S", "-nodefaults", "-display", "none", "-m", "16", *options]
    argv += ["-qmp", f"unix:{tmp_path}/own,server=on,wait=off"]
    with subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", *argv]) as process:
        try:
            own = connected(tmp_path / "own", process)
            yield tmp_path, replace, own
            own.close()
        finally:
            process.kill()


def commands(*verbs):
    return [each for each in typed(PAGE) if "--qmp" in each.command and each.command.split()[1] in verbs]


def test_the_session_of_the_running_vm(vm7):
    directory, replace, own = vm7
    plan, index, restore = commands("plan", "index", "restore")
    assert "recommended: chainlift" in plan.run(replace)
    index.run(replace)
    assert (directory / "disk.qcow2.lift" / "index-1.vmdk").exists()
    verify = subprocess.run([*CHAINLIFT, "verify", "--qmp", directory / "qmp"], capture_output=True, text=True)
    assert verify.returncode == 0, verify.stderr
    restore.run(replace)
    assert not (directory / "disk.qcow2.lift").exists()
    assert not [node for node in nodes(own) if "cover" in node or "hold" in node]


def test_clean_frees_what_a_killed_run_has_left(vm7):
    directory, replace, own = vm7
    (clean,) = commands("clean")
    prefix = node_prefix(directory / "disk.qcow2")
    descriptor = {"driver": "qcow2", "file": {"driver": "file", "filename": str(directory / "snap-1.qcow2")}}
    add_and_hold(own, prefix, descriptor, child(own, "vda", "backing"))
    clean.run({**replace, "chainlift-1a2b3c4d": prefix})
    assert not [node for node in nodes(own) if node.startswith("chainlift-")]


def add_and_hold(own, prefix, options, old):
    layer = {**options, "node-name": f"{prefix}-1"}
    own.execute("blockdev-add", driver="raw", node_name=f"{prefix}-cover1", read_only=True, file=layer)
    own.execute("blockdev-add", driver="null-co", node_name=f"{prefix}-null", size=0, read_only=True)
    own.execute("blockdev-add", driver="raw", node_name=f"{prefix}-hold", read_only=True, file=f"{prefix}-null")
    raw = {"driver": "raw", "node-name": f"{prefix}-hold", "read-only": True, "file": old}
    own.execute("blockdev-reopen", options=[raw])


def nodes(own):
    return [node["node-name"] for node in own.execute("query-named-block-nodes", flat=True)]


def child(own, node, role):
    graph = own.execute("x-debug-query-block-graph")
    names = {each["id"]: each["name"] for each in graph["nodes"]}
    (parent,) = [number for number, name in names.items() if name == node]
    return next(names[edge["child"]] for edge in graph["edges"] if (edge["parent"], edge["name"]) == (parent, role))
