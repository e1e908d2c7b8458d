"""A person names a file: whatever QEMU would take its name for, every verb takes it."""

import shutil
import subprocess
from pathlib import Path

import pytest
from tests.support import need
from tests.support.json_schemas import valid

from chainlift.chain.names import Reference, parse_argument, parse_name
from chainlift.cli.main import main
from chainlift.errors import PolicyError
from chainlift.qcow2.writer import write_image

MIB = 1 << 20
#: Verb -> its arguments before and after the image.
VERBS = {
    "inspect": (["inspect"], []),
    "map": (["map"], []),
    "plan": (["plan"], []),
    "index": (["index"], []),
    "squash": (["squash"], []),
    "squash onto": (["squash", "--onto", "mid:1"], []),
    "squash delete": (["squash", "--delete-layers"], []),
    "verify": (["verify", "--content"], []),
    "restore": (["restore", "--clean"], []),
    "flatten": (["flatten"], ["o:ut"]),
    "flatten raw": (["flatten", "-O", "raw"], ["json:out"]),
    "profile": (["profile", "--json", "--seconds", "0.5", "--out", "pro:file"], []),
}


def run(*words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return ended.value.code


def make_chain(image):
    """Layers with colons in their names, which a header must name with a directory."""
    backing = {}
    for number, name in enumerate(("ba:se", "mid:1", "mid:2", image)):
        data = bytes([65 + number]) * 65536 * (4 - number)
        write_image(Path(name), virtual_size=MIB, clusters=range(number, 4), data=data, **backing)
        backing = {"backing_file": f"./{name}", "backing_format": "qcow2"}


def same(one, other):
    return subprocess.run(["qemu-img", "compare", "-q", one, other], timeout=60).returncode == 0


@pytest.mark.integration
@pytest.mark.parametrize("name", ["a:b.qcow2", "file:x", "nbd:localhost:1", 'json:{"file.filename":"ba:se"}'])
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_a_file_whose_name_looks_like_something_else(tmp_path, monkeypatch, capsys, verb, name):
    monkeypatch.chdir(tmp_path)
    make_chain(name)
    before, after = VERBS[verb]
    if before[0] == "profile":
        need.check(("perf",))
    shutil.copytree(tmp_path, tmp_path / "copy")
    if verb in ("verify", "restore"):
        assert run("index", name) == 0
    assert run(*before, name, *after) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert same(f"./{name}", f"copy/{name}")
    if verb == "profile":
        assert valid("profile", said)["image"] == str(Path(name))
    if verb in ("inspect", "map"):
        assert "mid:1" in said
    for out in after:
        assert same(f"./{out}", f"copy/{name}")


def test_a_name_that_no_file_has_is_what_qemu_takes_it_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_argument("file:x") == Reference("x")
    assert parse_argument("d/a:b") == Reference("d/a:b")
    with pytest.raises(PolicyError, match="protocol 'nbd'"):
        parse_argument("nbd:x")
    write_image(tmp_path / "nbd:x", virtual_size=MIB)
    write_image(tmp_path / "file:x", virtual_size=MIB)
    assert parse_argument("nbd:x") == Reference("./nbd:x")
    assert parse_argument("file:x", file_format="qcow2") == Reference("./file:x", "qcow2")
    # A header's name is never a person's.
    assert parse_name("file:x").path == "x"
