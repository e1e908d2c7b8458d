"""Nothing is lost: ``prune`` is killed before and after every file-system call, and every call is made to fail.

Every image that has a name reads the same bytes at every point, and after a second run nothing is left over.
"""

import hashlib
import json
import os
import sys
import tempfile
from functools import partial

import pytest
from tests.support import faults
from tests.support.mounts import in_memory
from tests.support.stock import everything, img, read
from tests.support.thinned import drop_layers, hourly_chain, keep_layers, read_each

from chainlift.chain import open_chain
from chainlift.errors import ChainliftError, InputError
from chainlift.qcow2.writer import write_image

pytestmark = [pytest.mark.integration, pytest.mark.no_cover, pytest.mark.timeout(3000)]

SIZE = 1 << 20
LAYERS = [f"layer{number}.qcow2" for number in range(7)]
#: What stays: the image, the base, what is kept, and what the branch stands on.
STAYS = {"layer0.qcow2", "layer2.qcow2", "layer5.qcow2", "layer6.qcow2", "branch.qcow2"}


def make_template(directory):
    directory.mkdir()
    name = None
    for number, path in enumerate(LAYERS):
        write_image(
            directory / path, virtual_size=SIZE, cluster_size=65536 if number else 16384,
            clusters=[number, number + 4, 11],
            data=lambda c, n=number: bytes([20 * n + c + 1]) * (65536 if n else 16384),
            compress=number == 1, backing_file=name, backing_format=name and "qcow2",
        )  # fmt: skip
        name = path
    write_image(directory / "branch.qcow2", virtual_size=SIZE, clusters=[3], data=b"b" * 65536,
                backing_file="layer2.qcow2", backing_format="qcow2")  # fmt: skip
    img("bitmap", "--add", directory / "layer4.qcow2", "backup")


def thin_out(directory, qemu):
    keep_layers(directory / LAYERS[-1], qemu, directory / "layer5.qcow2")


def run_verb(directory, qemu):
    tempfile.tempdir = str(directory.parent)  # what is killed leaves its temporary directory
    try:
        thin_out(directory, qemu)
    except ChainliftError as error:
        os.write(2, f"{error}\n".encode())
        return error.exit_status
    return 0


def state_of(directory):
    """What lies in a directory, without what differs from run to run: times and inode numbers in the note."""
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        digest.update(path.name.encode() + b"\0")
        if path.name.endswith(".json"):
            data = json.loads(path.read_text())
            digest.update(repr([data["replaced"], [each["path"] for each in data["goes"]]]).encode())
        else:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def ours(path):
    with open_chain(path) as chain:
        return chain.read(0, chain.virtual_size)


def check(directory, wanted, where):
    """All that is there reads as before, but layers on which nobody stands and whose own base has gone."""
    for name, content in wanted.items():
        path = directory / name
        if name in STAYS or path.exists():
            assert ours(path) == content, f"{name} reads other bytes after {where}"
    for name in sorted(STAYS):
        assert read(directory / name) == wanted[name], f"stock QEMU: {name} reads other bytes after {where}"


def attack(tmp_path, fresh, qemu, kinds, *, reads):
    """Let a run meet each kind of fault at every so many-th call: ``{"kill before": 1}`` at all."""
    template = tmp_path / "template"
    make_template(template)
    wanted = {path.name: read(path) for path in template.iterdir()}
    directory = fresh(template)
    clean = faults.run(partial(run_verb, directory, qemu), directory, reads=reads)
    assert clean.status == 0, clean.stderr
    assert {path.name for path in directory.iterdir()} == STAYS
    assert len(clean.calls) > 30
    checked, points = set(), 0
    for fault, every in kinds.items():
        for point in range(0, len(clean.calls), every):
            directory = fresh(template)
            before = everything(directory)
            trace = faults.run(partial(run_verb, directory, qemu), directory, point=point, fault=fault, reads=reads)
            if not trace.hit:
                continue
            points += 1
            where = f"{fault} at call {point} ({trace.calls[point]})"
            assert trace.status in ((None,) if fault.startswith("kill") else (0, 2, 3)), f"{where}: {trace.stderr}"
            assert "Traceback" not in trace.stderr
            if trace.status in (2, 3):
                assert everything(directory) == before, f"{where}: not as before: {trace.stderr}"
            if (state := state_of(directory)) in checked:
                continue
            checked.add(state)
            check(directory, wanted, where)
            thin_out(directory, qemu)
            check(directory, wanted, f"a second run after {where}")
            assert {path.name for path in directory.iterdir()} == STAYS, f"left after {where} and a second run"
    sys.stdout.write(f"{points} faults at {len(clean.calls)} calls, {len(checked)} different states\n")


@pytest.mark.needs("x86-64")
def test_killed_or_failing_at_any_change(tmp_path, fresh, host_qemu):
    attack(tmp_path, fresh, host_qemu, {"kill before": 1, "ENOSPC": 3}, reads=False)


@pytest.mark.long
@pytest.mark.needs("x86-64")
def test_killed_or_failing_at_any_call(tmp_path, fresh, host_qemu):
    attack(
        tmp_path,
        fresh,
        host_qemu,
        dict.fromkeys(["kill before", "kill after", "ENOSPC", "EIO", "short"], 1),
        reads=True,
    )


def test_a_full_disk_is_thinned_out_step_by_step(tmp_path, host_qemu):
    place = tmp_path / "fs"
    place.mkdir()
    with in_memory(place, "16m"):
        layers = hourly_chain(place / "c", 8)
        before = read_each(layers)
        free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
        # Room for one new layer at a time: the branches have each pair merged by itself.
        (place / "ballast").write_bytes(b"x" * (free - (1 << 20) - 200_000))
        done = keep_layers(layers[-1], host_qemu, layers[2], layers[4], layers[6])
        assert len(done.deleted) == 4
        for path, content in read_each(layers).items():
            assert content == before[path]


def test_a_disk_that_is_too_full_is_refused_and_left_as_it_was(tmp_path, host_qemu):
    place = tmp_path / "fs"
    place.mkdir()
    with in_memory(place, "16m"):
        layers = hourly_chain(place / "c", 6)
        free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
        (place / "ballast").write_bytes(b"x" * (free - 300_000))
        before = everything(place)
        with pytest.raises(InputError, match=r"are needed, .* are free"):
            drop_layers(layers[-1], host_qemu, layers[3])
        assert everything(place) == before
