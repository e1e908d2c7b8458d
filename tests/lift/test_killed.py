"""Nothing is lost: each verb is killed before and after every file-system call, and every call is made to fail.

With --long at all points; by default killed at each call that changes something, and failing at a third of these. The
count is in the test's output (`pytest -rP` shows it). What is left must read the same bytes, with every layer as it
was, and a second run of the verb must succeed and leave nothing but lifts that an image may name.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest
from tests.support import faults
from tests.support.lifts import lift_index, lift_squash, restore_lift

from chainlift.chain import open_chain
from chainlift.errors import ChainliftError
from chainlift.lift.diff import open_difference
from chainlift.lift.diff_export import export_difference
from chainlift.lift.flatten import flatten
from chainlift.lift.record.note import read_note
from chainlift.qcow2.writer import write_image

pytestmark = [
    pytest.mark.integration,
    pytest.mark.no_cover,
    pytest.mark.timeout(3000),
    pytest.mark.needs("x86-64"),
]

SIZE = 1 << 20


def make_template(directory):
    directory.mkdir()
    name = None
    for number in range(5):
        write_image(
            directory / f"layer{number}.qcow2", virtual_size=SIZE, cluster_size=65536 if number else 16384,
            clusters=[number, number + 4, 9],
            data=lambda c, n=number: bytes([40 * n + c + 1]) * (65536 if n else 16384),
            compress=number == 1, backing_file=name, backing_format=name and "qcow2",
        )  # fmt: skip
        name = f"layer{number}.qcow2"


def restore_two(directory, qemu, **options):
    restore_lift(directory / "layer4.qcow2", qemu, **options)


def diff_export(directory):
    with open_difference(directory / "layer1.qcow2", directory / "layer3.qcow2", export=True) as difference:
        export_difference(difference, difference.ranges(), directory / "out.qcow2")


VERBS = {
    "index": lambda d, q: lift_index(d / "layer3.qcow2", q),
    "index with a budget": lambda d, q: lift_index(d / "layer3.qcow2", q, copy_budget_bytes=1 << 20),
    "index again": lambda d, q: lift_index(d / "layer3.qcow2", q, copy_budget_bytes=1 << 16),
    "index again and clean": lambda d, q: lift_index(d / "layer3.qcow2", q, copy_budget_bytes=1 << 16, clean=True),
    "squash": lambda d, q: lift_squash(d / "layer3.qcow2", q),
    "squash over an index": lambda d, q: lift_squash(d / "layer3.qcow2", q),
    "squash over an index and clean": lambda d, q: lift_squash(d / "layer3.qcow2", q, clean=True),
    "squash and delete": lambda d, q: lift_squash(d / "layer3.qcow2", q, delete_in=[d]),
    "restore": lambda d, q: restore_lift(d / "layer3.qcow2", q),
    "restore and clean": lambda d, q: restore_lift(d / "layer3.qcow2", q, clean=True),
    "restore two": restore_two,
    "restore two and clean": partial(restore_two, clean=True),
    "clean what is left": lambda d, q: restore_lift(d / "layer3.qcow2", q, clean=True),
    "flatten": lambda d, q: flatten(d / "layer3.qcow2", d / "out.qcow2"),
    "diff export": lambda d, q: diff_export(d),
}


#: What removes lifts that an image has named.
REMOVE = {verb for verb in VERBS if "clean" in verb or "delete" in verb}


def lift_before(directory, verb, qemu):
    """Do what a verb needs done; not in the template: an index knows its absolute path."""
    if verb not in ("index", "index with a budget", "squash", "squash and delete", "flatten", "diff export"):
        lift_index(directory / "layer3.qcow2", qemu)
    if "two" in verb:
        lift_squash(directory / "layer4.qcow2", qemu)
    if verb == "clean what is left":
        restore_lift(directory / "layer3.qcow2", qemu)


def state_of(directory):
    """What lies in a directory, without what differs from run to run: times and inode numbers in records."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        digest.update(str(path.relative_to(directory)).encode() + b"\0")
        if path.suffix == ".json" and path.parent.suffix == ".lift":
            data = json.loads(path.read_text())
            names = ("kind", "used", "original", "lifted", "deleted", "supersedes")
            digest.update(repr([data.get(name) for name in names]).encode())
        elif path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def files_in(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def leftovers(directory, verb):
    """What no run should leave: everything that is neither a chain's nor of a lift that an image may name, or did."""
    known = {f"layer{number}.qcow2" for number in range(5)} | {"out.qcow2"}
    for lift in directory.glob("*.lift"):
        records = [record for record in lift.glob("*.json") if json.loads(record.read_text())["used"]]
        for record in records:
            known |= {f"{lift.name}/{record.stem}{suffix}" for suffix in (".json", ".table", ".vmdk", ".qcow2")}
        if not records:
            yield lift.name
    for note in directory.glob("*.lift.json"):
        lift = note.with_suffix("")
        noted = {Path(name).stem for name in read_note(lift)}
        # The way back from a lift that was removed stays noted.
        if noted and (verb in REMOVE or noted <= {record.stem for record in lift.glob("*.json")}):
            known.add(note.name)
    yield from sorted(set(files_in(directory)) - known)


def read_all(directory):
    found = []
    for image in ("layer3.qcow2", "layer4.qcow2"):
        with open_chain(directory / image) as chain:
            found.append(chain.read(0, chain.virtual_size))
    return found


def check_state(directory, wanted, raw, layers, verb, where):
    assert read_all(directory) == wanted, f"other bytes after {where}"
    for image, copy in zip(("layer3.qcow2", "layer4.qcow2"), raw, strict=True):
        done = subprocess.run(["qemu-img", "compare", directory / image, copy], capture_output=True, text=True)
        assert done.returncode == 0, f"stock QEMU after {where}: {image}: {done.stdout}{done.stderr}"
    if verb != "squash and delete":
        for name, data in layers.items():
            assert (directory / name).read_bytes() == data, f"{name} changed after {where}"
    if (directory / "out.qcow2").exists():
        done = subprocess.run(["qemu-img", "compare", directory / "out.qcow2", raw[0]], capture_output=True, text=True)
        assert done.returncode == 0, f"a flattened image that is not whole after {where}: {done.stdout}{done.stderr}"


def run_again(directory, verb, qemu, where):
    again(directory, verb, qemu, where)
    if "two" in verb:  # the image below has a place of its own
        again(directory, "clean what is left", qemu, where)


def again(directory, verb, qemu, where):
    try:
        VERBS[verb](directory, qemu)
    except ChainliftError as error:
        said = str(error)
        # Done already, or it says plainly what to do.
        assert error.exit_status == 2, f"a second run after {where}: {said}"
        assert any(word in said for word in ("is not lifted", "exists", "no way back", "nothing between")), said


def attack(tmp_path, fresh, qemu, verb, kinds, *, reads):
    """Let runs of a verb meet each kind of fault at every so many-th call: ``{"kill before": 1}`` at all."""
    template = tmp_path / "template"
    make_template(template)
    wanted = read_all(template)
    raw = [tmp_path / "raw3", tmp_path / "raw4"]
    for copy, data in zip(raw, wanted, strict=True):
        copy.write_bytes(data)
    layers = {f"layer{n}.qcow2": (template / f"layer{n}.qcow2").read_bytes() for n in range(3)}

    directory = fresh(template)  # in one place always: an index has it in its names
    lift_before(directory, verb, qemu)
    prepared = Path(shutil.copytree(directory, tmp_path / "prepared"))
    clean = faults.run(partial(run_verb, verb, directory, qemu), directory, reads=reads)
    assert clean.status == 0, clean.stderr
    assert len(clean.calls) >= 5
    checked, points = set(), 0
    for fault, every in kinds.items():
        for point in range(0, len(clean.calls), every):
            directory = fresh(prepared)
            before = {name: (directory / name).read_bytes() for name in files_in(directory)}
            work = partial(run_verb, verb, directory, qemu)
            trace = faults.run(work, directory, point=point, fault=fault, reads=reads)
            if not trace.hit:
                continue
            points += 1
            where = f"{fault} at call {point} ({trace.calls[point]}) of {verb}"
            assert trace.status in ((None,) if fault.startswith("kill") else (0, 2, 3)), f"{where}: {trace.stderr}"
            assert "Traceback" not in trace.stderr
            if trace.status in (2, 3):
                after = {name: (directory / name).read_bytes() for name in files_in(directory)}
                assert after == before, f"{where}: not as before: {trace.stderr}"
            state = state_of(directory)
            if state in checked:
                continue
            checked.add(state)
            check_state(directory, wanted, raw, layers, verb, where)
            run_again(directory, verb, qemu, where)
            check_state(directory, wanted, raw, layers, verb, f"a second run after {where}")
            # A run that was killed just before the switch leaves a lift that an image might name, and its way back.
            if verb == "squash and delete" and not (directory / "layer3.qcow2.lift/squash-2.json").exists():
                ways = read_note(directory / "layer3.qcow2.lift").values()
                assert all(way.deleted for way in ways), f"a way back is noted after a second run after {where}"
                left = [name for name in ("layer1.qcow2", "layer2.qcow2") if (directory / name).exists()]
                assert not left, f"{left} stays after a second run after {where}"
            left = list(leftovers(directory, verb))
            assert not left, f"{left} stays after a second run after {where}"
    sys.stdout.write(f"{verb}: {points} faults at {len(clean.calls)} calls, {len(checked)} different states\n")


def run_verb(verb, directory, qemu):
    tempfile.tempdir = str(directory.parent)  # what is killed leaves its temporary directory
    try:
        VERBS[verb](directory, qemu)
    except ChainliftError as error:
        os.write(2, f"{error}\n".encode())
        return error.exit_status
    return 0


@pytest.mark.parametrize(
    "verb",
    [
        "index",
        "index again and clean",
        "squash and delete",
        "restore two and clean",
        "clean what is left",
        "diff export",
    ],
)
def test_killed_or_failing_at_any_change(tmp_path, fresh, host_qemu, verb):
    attack(tmp_path, fresh, host_qemu, verb, {"kill before": 1, "ENOSPC": 3}, reads=False)


@pytest.mark.long
@pytest.mark.parametrize("verb", VERBS)
def test_killed_or_failing_at_any_call(tmp_path, fresh, host_qemu, verb):
    kinds = dict.fromkeys(["kill before", "kill after", "ENOSPC", "EIO", "short"], 1)
    attack(tmp_path, fresh, host_qemu, verb, kinds, reads=True)
