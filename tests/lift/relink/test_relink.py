"""Names that lead nowhere after a move: found and written anew, or nothing is."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial

import pytest
from tests.support import faults
from tests.support.chains import plain_chain
from tests.support.json_schemas import valid
from tests.support.stock import backing_name, create, img, opened_by_qemu_io, opens, read, write

from chainlift.cli.main import main
from chainlift.errors import ChainliftError, ImageError, InputError, OperationError
from chainlift.lift.build.workspace import alone_in
from chainlift.lift.record.pointer import read_pointer
from chainlift.lift.relink.plan import UnfoundError, plan_relink
from chainlift.lift.relink.verb import relink, undo_relink
from chainlift.qcow2.writer import write_image

pytestmark = pytest.mark.integration


def chain(directory, *names, absolute=False, size="4M"):
    """Make images, each over the one before; return them."""
    directory.mkdir(parents=True, exist_ok=True)
    made = []
    for number, name in enumerate(names):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        create(path, made[-1] if made else None, size=size, named=str(made[-1]) if made and absolute else "")
        write(path, number + 1, number << 18, "384k")
        made.append(path)
    return made


def names(directory):
    return {
        str(path.relative_to(directory)): (pointer := read_pointer(path)[1]) and pointer.name
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.suffix == ".qcow2"
    }


def test_a_directory_that_was_moved_with_absolute_names(tmp_path, host_qemu):
    top = chain(tmp_path / "old", "base.qcow2", "s1.qcow2", "s2.qcow2", absolute=True)[-1]
    wanted = read(top)
    (tmp_path / "old").rename(tmp_path / "new")
    place = tmp_path / "new"
    assert not opens(place / "s2.qcow2")
    done = relink([place], qemu=host_qemu)
    assert [one.change.owner.name for one in done.plan.new_names] == ["s1.qcow2", "s2.qcow2"]
    assert names(place) == {
        "base.qcow2": None, "s1.qcow2": str(place / "base.qcow2"), "s2.qcow2": str(place / "s1.qcow2")
    }  # fmt: skip
    assert read(place / "s2.qcow2") == wanted
    (journal,) = done.journals
    assert len(undo_relink(journal, qemu=host_qemu)) == 2
    assert names(place)["s2.qcow2"] == str(tmp_path / "old/s1.qcow2")
    assert undo_relink(journal, qemu=host_qemu) == []
    (tmp_path / "new").rename(tmp_path / "old")
    assert read(top) == wanted


def test_relative_names_stay_relative_and_files_are_found_wherever_they_are(tmp_path, host_qemu):
    place = tmp_path / "vm"
    top = chain(place, "base.qcow2", "a/s1.qcow2", "a/s2.qcow2")[-1]
    wanted = read(top)
    (place / "templates/deep").mkdir(parents=True)
    (place / "base.qcow2").rename(place / "templates/deep/base.qcow2")
    (place / "a/s1.qcow2").rename(place / "s1.qcow2")
    relink([place], qemu=host_qemu)
    assert names(place) == {
        "templates/deep/base.qcow2": None, "s1.qcow2": "templates/deep/base.qcow2", "a/s2.qcow2": "../s1.qcow2"
    }  # fmt: skip
    assert read(top) == wanted
    shutil.move(place, tmp_path / "elsewhere")
    assert read(tmp_path / "elsewhere/a/s2.qcow2") == wanted


def test_a_name_without_a_format_and_a_raw_base(tmp_path, any_qemu):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/disk.img").write_bytes(b"R" * (1 << 20))
    write_image(tmp_path / "top.qcow2", virtual_size=1 << 20, backing_file="disk.img")
    done = relink([tmp_path], qemu=any_qemu)
    assert read(tmp_path / "top.qcow2") == b"R" * (1 << 20)
    info = json.loads(img("info", "--output=json", tmp_path / "top.qcow2"))
    assert (info["backing-filename"], info["backing-filename-format"]) == ("raw/disk.img", "raw")
    undo_relink(done.journals[0], qemu=any_qemu)
    assert backing_name(tmp_path / "top.qcow2") == "disk.img"


def test_a_json_name_keeps_what_it_says(tmp_path, host_qemu):
    base, top = chain(tmp_path / "old", "base.qcow2", "top.qcow2")
    wanted = read(top)
    name = json.dumps({"driver": "qcow2", "file": {"driver": "file", "filename": str(base)}})
    img("rebase", "-u", "-F", "qcow2", "-b", f"json:{name}", top)
    (tmp_path / "old").rename(tmp_path / "new")
    relink([tmp_path / "new"], qemu=host_qemu)
    assert read(tmp_path / "new/top.qcow2") == wanted


def test_a_renamed_file_is_never_guessed(tmp_path, host_qemu):
    base, top = chain(tmp_path, "base.qcow2", "top.qcow2")
    wanted, before = read(top), top.read_bytes()
    base.rename(tmp_path / "renamed.qcow2")
    with pytest.raises(UnfoundError, match=r"1 backing file was not found.*--map") as refused:
        relink([tmp_path], qemu=host_qemu)
    assert [(one.name, one.candidates) for one in refused.value.plan.unresolved] == [("base.qcow2", [])]
    assert top.read_bytes() == before
    assert not list(tmp_path.glob("*.json*"))
    with pytest.raises(InputError, match="no image names it"):
        relink([tmp_path], qemu=host_qemu, maps={"other.qcow2": str(tmp_path / "renamed.qcow2")})
    relink([tmp_path], qemu=host_qemu, maps={"base.qcow2": str(tmp_path / "renamed.qcow2")})
    assert backing_name(top) == "renamed.qcow2"
    assert read(top) == wanted


@pytest.mark.parametrize("how", ["name", "path", "directory"])
def test_what_a_map_may_say(tmp_path, host_qemu, how):
    base, top = chain(tmp_path / "old", "base.qcow2", "top.qcow2", absolute=True)
    wanted = read(top)
    for place in ("one", "two"):
        shutil.copytree(tmp_path / "old", tmp_path / "new" / place)
    shutil.rmtree(tmp_path / "old")
    with pytest.raises(UnfoundError) as refused:
        relink([tmp_path / "new"], qemu=host_qemu)
    assert [len(one.candidates) for one in refused.value.plan.unresolved] == [2, 2]
    assert "2 files may be it" in refused.value.plan.unresolved[0].advice
    new = tmp_path / "new/two"
    pair = {
        "name": ("base.qcow2", new / "base.qcow2"), "path": (base, new / "base.qcow2"), "directory": (base.parent, new)
    }[how]  # fmt: skip
    relink([tmp_path / "new"], qemu=host_qemu, maps={str(pair[0]): str(pair[1])})
    assert backing_name(new / "top.qcow2") == str(new / "base.qcow2")
    assert read(tmp_path / "new/one/top.qcow2") == wanted


def test_what_cannot_be_the_layer_is_not_taken(tmp_path, host_qemu):
    top = chain(tmp_path, "base.qcow2", "top.qcow2")[-1]
    before = top.read_bytes()
    (tmp_path / "base.qcow2").unlink()
    (tmp_path / "x").mkdir()
    other = tmp_path / "x/base.qcow2"
    over = {"backing_file": "../top.qcow2", "backing_format": "qcow2"}
    for make, why in (
        (lambda: other.write_bytes(b"raw" * 1000), "it is raw, and the header says qcow2"),
        (lambda: create(other, size="8M"), "8.00 MiB (8388608 bytes), more than the 4.00 MiB"),
        (partial(write_image, other, virtual_size=4 << 20, **over), "it stands on the image itself"),
        (lambda: other.write_bytes(b"QFI\xfb\0\0\0\3" + bytes(200)), "it cannot be read"),
        (lambda: other.write_bytes(b"KDMV" + bytes(2000)), "it is vmdk"),
    ):
        other.unlink(missing_ok=True)
        make()
        (missing,) = plan_relink([tmp_path], {}).unresolved
        (candidate,) = missing.candidates
        assert why in "; ".join(candidate.speaks_against)
        with pytest.raises(InputError, match="cannot be what"):
            relink([tmp_path], qemu=host_qemu, maps={"base.qcow2": str(other)})
    assert top.read_bytes() == before


def test_two_images_that_miss_each_other_make_no_loop(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        create(tmp_path / name / f"{name}.qcow2", size="4M")
        img("rebase", "-u", "-F", "qcow2", "-b", f"gone/{other}.qcow2", tmp_path / name / f"{name}.qcow2")
    plan = plan_relink([tmp_path], {})
    assert (len(plan.new_names), len(plan.unresolved)) == (1, 1)
    assert "stands on the image itself" in plan.unresolved[0].candidates[0].speaks_against[0]


def test_what_a_lift_knows_of_a_layer_decides(tmp_path, host_qemu):
    from tests.support.lifts import lift_squash

    top = plain_chain(tmp_path / "vm", length=4)
    lift_squash(top, host_qemu)
    base = tmp_path / "vm/layer0.qcow2"
    for number, place in enumerate(("good", "bad")):
        (tmp_path / "vm" / place).mkdir()
        shutil.copy(base, tmp_path / "vm" / place / base.name)
        if number:
            write(tmp_path / "vm" / place / base.name, 7, "3M")
    base.unlink()
    plan = plan_relink([tmp_path / "vm"], {})
    found = {one.change.owner.name: one for one in plan.new_names}
    assert found["layer1.qcow2"].found == str(tmp_path / "vm/good/layer0.qcow2")
    assert "its tables are those that a lift was made of" in found["layer1.qcow2"].speaks_for


def test_some_that_are_not_found_may_be_left(tmp_path, host_qemu):
    chain(tmp_path, "base.qcow2", "s1.qcow2", "s2.qcow2")
    chain(tmp_path / "other", "lost.qcow2", "o1.qcow2", "o2.qcow2")
    (tmp_path / "other/lost.qcow2").unlink()
    (tmp_path / "moved").mkdir()
    (tmp_path / "base.qcow2").rename(tmp_path / "moved/base.qcow2")
    (tmp_path / "other/o1.qcow2").rename(tmp_path / "moved/o1.qcow2")
    with pytest.raises(UnfoundError):
        relink([tmp_path], qemu=host_qemu)
    assert backing_name(tmp_path / "s1.qcow2") == "base.qcow2"
    done = relink([tmp_path], qemu=host_qemu, partly=True)
    # The second one's chain ends further down, where nobody has found anything.
    assert {one.change.owner.name for one in done.plan.new_names} == {"s1.qcow2", "o2.qcow2"}
    assert opens(tmp_path / "s2.qcow2")


def test_an_image_in_use_and_a_base_that_somebody_writes_to(tmp_path, host_qemu):
    base, top = chain(tmp_path / "vm", "base.qcow2", "top.qcow2")
    (tmp_path / "vm/new").mkdir()
    moved = base.rename(tmp_path / "vm/new/base.qcow2")
    with opened_by_qemu_io(moved), pytest.raises(ImageError, match="is open for writing, so"):
        relink([tmp_path / "vm"], qemu=host_qemu)
    command = ["qemu-io", "-c", "sleep 60000", "--image-opts", f"driver=qcow2,file.filename={top},backing="]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            from chainlift.lift.neighbours.locks import is_open_in_qemu

            while not is_open_in_qemu(top):
                assert process.poll() is None
            with pytest.raises(ImageError, match="is open in qemu-io"):
                relink([tmp_path / "vm"], qemu=host_qemu)
        finally:
            process.kill()
    assert backing_name(top) == "base.qcow2"
    assert not list((tmp_path / "vm").glob("*.json*"))


def test_a_chain_that_does_not_open_gets_all_names_back(tmp_path, host_qemu):
    chain(tmp_path / "one", "base.qcow2", "top.qcow2", absolute=True)
    chain(tmp_path / "two", "other.qcow2", "last.qcow2", absolute=True)
    # QEMU refuses the second one: its table of internal snapshots, at which we do not look, is not aligned.
    (tmp_path / "one").rename(tmp_path / "vm")
    (tmp_path / "two").rename(tmp_path / "vm/two")
    broken = tmp_path / "vm/two/other.qcow2"
    with broken.open("r+b") as file:
        file.seek(60)
        file.write(b"\0\0\0\1")
        file.write(((3 << 16) + 8).to_bytes(8, "big"))
    before = names(tmp_path / "vm")
    with pytest.raises(OperationError, match=r"is not opened by QEMU.*all names are as before"):
        relink([tmp_path / "vm"], qemu=host_qemu)
    assert names(tmp_path / "vm") == before
    assert not list((tmp_path / "vm").glob("*.json*"))


def test_a_journal_of_somebody_else_is_not_believed(tmp_path, host_qemu, monkeypatch):
    victim = chain(tmp_path / "elsewhere", "base.qcow2", "victim.qcow2")[-1]
    place = tmp_path / "vm"
    chain(place, "base.qcow2", "top.qcow2")
    change = {"image": str(victim), "old": {"name": "base.qcow2", "format": "qcow2"},
              "new": {"name": "/etc/passwd", "format": "raw"}}  # fmt: skip
    journal = place / "chainlift-relink-1.json"
    journal.write_text(json.dumps({"schema": 1, "state": "begun", "changes": [change]}))
    if os.geteuid() == 0:
        os.chown(journal, 1234, 1234)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 1234)
    relink([place], qemu=host_qemu)
    assert backing_name(victim) == "base.qcow2"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2}', '{"schema": 1, "changes": [1]}', "\xff"])
def test_what_is_no_journal(tmp_path, host_qemu, text):
    (tmp_path / "list.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError):
        undo_relink(tmp_path / "list.json", qemu=host_qemu)


def test_an_image_that_names_something_else_since_then_is_not_undone(tmp_path, host_qemu):
    base, top = chain(tmp_path, "base.qcow2", "top.qcow2")
    (tmp_path / "new").mkdir()
    base.rename(tmp_path / "new/base.qcow2")
    done = relink([tmp_path], qemu=host_qemu)
    img("rebase", "-u", "-F", "qcow2", "-b", str(tmp_path / "new/base.qcow2"), top)
    with pytest.raises(InputError, match="names something else"):
        undo_relink(done.journals[0], qemu=host_qemu)


def test_two_at_once(tmp_path, host_qemu):
    chain(tmp_path, "base.qcow2", "top.qcow2")
    with alone_in([tmp_path]), pytest.raises(InputError, match="another chainlift works there"):
        relink([tmp_path], qemu=host_qemu)


def test_damaged_images_end_in_one_line(tmp_path, host_qemu):
    rng = random.Random(5)
    base, top = chain(tmp_path / "vm", "base.qcow2", "top.qcow2")
    (tmp_path / "vm/new").mkdir()
    base.rename(tmp_path / "vm/new/base.qcow2")
    whole = top.read_bytes()
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(4, 400)] = rng.randrange(256)
        top.write_bytes(damaged)
        try:
            plan_relink([tmp_path / "vm"], {})
        except ChainliftError as error:
            assert "\n" not in str(error)


def make_template(directory):
    chain(directory / "vm", "base.qcow2", "s1.qcow2", "s2.qcow2", "s3.qcow2", absolute=True, size="2M")
    (directory / "vm").rename(directory / "moved")


def run_relink(directory, qemu):
    tempfile.tempdir = str(directory.parent)  # what is killed leaves its temporary directory
    try:
        relink([directory / "moved"], qemu=qemu)
    except ChainliftError as error:
        os.write(2, f"{error}\n".encode())
        return error.exit_status
    return 0


def attack(tmp_path, fresh, qemu, kinds, *, reads, every=1):
    """Stop or fail a run at each of its calls; what is left, a second run finishes, and the list undoes all of it."""
    template = tmp_path / "template"
    make_template(template)
    old = names(template / "moved")
    start = fresh(template)
    clean = faults.run(partial(run_relink, start, qemu), start, reads=reads)
    assert clean.status == 0, clean.stderr
    new = names(start / "moved")
    assert new != old
    wanted = read(start / "moved/s3.qcow2")
    assert len(clean.calls) > 5
    checked = set()
    for fault in kinds:
        for point in range(0, len(clean.calls), every):
            directory = fresh(template)
            trace = faults.run(partial(run_relink, directory, qemu), directory, point=point, fault=fault, reads=reads)
            if not trace.hit:
                continue
            where = f"{fault} at call {point} ({trace.calls[point]}): {trace.stderr}"
            assert "Traceback" not in trace.stderr, where
            place = directory / "moved"
            state = names(place)
            assert all(state[name] in (old[name], new[name]) for name in old), where
            if trace.status in (2, 3):
                assert state == old, where
                assert not list(place.glob("*.json")), where
            left = {path.name: path.read_text() for path in place.glob("*.json*")}
            key = (
                *state.items(),
                *left,
                trace.status,
                *(json.loads(t)["state"] for n, t in left.items() if n[-1] == "n"),
            )
            if key in checked:
                continue
            checked.add(key)
            done = relink([place], qemu=qemu)
            assert names(place) == new, where
            assert read(place / "s3.qcow2") == wanted
            lists = sorted(place.glob("*.json"))
            assert not list(place.glob("*.new")), where
            for journal in lists:
                undo_relink(journal, qemu=qemu)
            assert names(place) == old, where
            assert set(done.journals) <= set(lists)
    return len(checked)


@pytest.mark.needs("x86-64")
@pytest.mark.timeout(900)
def test_killed_or_failing_at_any_change(tmp_path, fresh, host_qemu):
    assert attack(tmp_path, fresh, host_qemu, ["kill before", "ENOSPC"], reads=False) > 3


@pytest.mark.long
@pytest.mark.needs("x86-64")
@pytest.mark.timeout(3000)
def test_killed_or_failing_at_any_call(tmp_path, fresh, host_qemu):
    attack(tmp_path, fresh, host_qemu, ["kill before", "kill after", "ENOSPC", "EIO", "short"], reads=True)


@pytest.mark.interrupts
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_at_random_moments_it_has_written_all_names_or_none(tmp_path, fresh, number):
    template = tmp_path / "template"
    make_template(template)
    old = names(template / "moved")
    rng = random.Random(number)
    ends = set()
    for turn in range(3):
        place = fresh(template) / "moved"
        command = [sys.executable, "-m", "chainlift", "relink", place]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        if turn:  # at any moment; else not at all
            journal = place / "chainlift-relink-1.json"
            while not journal.exists() and process.poll() is None:
                time.sleep(0.001)
            time.sleep(rng.random() / 4)
            process.send_signal(number)
        said = process.communicate(timeout=60)[1]
        assert "Traceback" not in said
        changed = [name for name, now in names(place).items() if now != old[name]]
        if process.returncode == 0:
            assert len(changed) == 3
        else:
            assert process.returncode == 128 + number, said
            assert not changed
            assert not list(place.glob("*.json*"))
        ends.add(process.returncode)
    assert 0 in ends


def test_the_command(tmp_path, capsys):
    def chainlift(*words):
        with pytest.raises(SystemExit) as ended:
            main(["relink", *map(str, words)])
        return ended.value.code, *capsys.readouterr()

    base, top = chain(tmp_path / "vm", "base.qcow2", "top.qcow2")
    (tmp_path / "vm/new").mkdir()
    base.rename(tmp_path / "vm/new/base.qcow2")
    text = "new/base.qcow2, not base.qcow2 (it is qcow2, as the header says; its disk has 4.00 MiB, too)\n"
    assert chainlift(tmp_path / "vm", "--dry-run") == (0, f"{top}: would name {text}", "")
    assert backing_name(top) == "base.qcow2"
    journal = tmp_path / "vm/chainlift-relink-1.json"
    undoing = f"chainlift: what undoes it: chainlift relink --undo {journal}\n"
    assert chainlift(tmp_path / "vm") == (0, f"{top}: names {text}", undoing)
    assert chainlift(tmp_path / "vm") == (0, "every backing file is where its name says\n", "")
    assert chainlift("--undo", journal) == (0, "1 name written as before\n", "")
    status, out, _ = chainlift("--undo", journal, "--json")
    assert (status, valid("relink", out)) == (0, {"schema": 1, "undone": []})
    status, out, _ = chainlift(tmp_path / "vm", "--json")
    said = valid("relink", out)
    assert (status, said["undo"]) == (0, [str(tmp_path / "vm/chainlift-relink-2.json")])
    assert said["changes"][0]["new"] == {"name": "new/base.qcow2", "format": "qcow2"}
    (tmp_path / "vm/new/base.qcow2").rename(tmp_path / "vm/renamed")
    status, out, err = chainlift(tmp_path / "vm")
    assert (status, out) == (2, "")
    assert "--map base.qcow2=FILE" in err.splitlines()[0]
    status, out, _ = chainlift(tmp_path / "vm", "--json")
    assert (status, valid("relink", out)["unresolved"][0]["name"]) == (2, "new/base.qcow2")
    assert chainlift(tmp_path / "vm", "--map", "nonsense")[0] == 2
    assert chainlift(tmp_path / "vm", "--map", f"base.qcow2={tmp_path}/vm/renamed")[0] == 0
    assert opens(top)
    assert chainlift()[0] == 2
