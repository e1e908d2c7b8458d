"""Copies of a QEMU without one function: made, found again, refused, removed."""

import dataclasses
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from tests.support.json_schemas import valid

from chainlift.errors import InputError, MissingToolError, QemuError
from chainlift.qemu import ablation, read_check
from chainlift.qemu.ablated import ablate, ablated_names, remove_ablated
from chainlift.qemu.ablation import Ablation
from chainlift.qemu.find import find_qemu
from chainlift.qemu.process import run_tool
from chainlift.qemu.read_check import check_reads
from chainlift.qemu.releases import added_releases

pytestmark = [pytest.mark.integration, pytest.mark.needs("x86-64")]
F = "bdrv_is_inserted"
TOOLS = ("img", "io", "storage-daemon", "system")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of our own, in which the releases that are there can be found."""
    (tmp_path / "qemu").mkdir()
    for qemu in added_releases():
        there = qemu.path("img").parents[3]
        (tmp_path / "qemu" / there.name).symlink_to(there)
    monkeypatch.setenv("CHAINLIFT_CACHE", str(tmp_path))
    return tmp_path


def bytes_of(qemu):
    return {tool: qemu.path(tool).resolve().read_bytes() for tool in TOOLS}


def test_a_copy_differs_in_one_place_reads_right_and_is_a_qemu_like_any_other(any_qemu, cache):
    before = bytes_of(any_qemu)
    made = ablate(find_qemu(any_qemu.label), F)
    assert made.label == f"{any_qemu.label},without={F}"
    assert made.version_text == any_qemu.version_text
    assert bytes_of(any_qemu) == before
    for tool, copied in bytes_of(made).items():
        one, other = np.frombuffer(before[tool], np.uint8), np.frombuffer(copied, np.uint8)
        differing = np.flatnonzero(one != other)
        assert 0 <= differing[-1] - differing[0] < 6
    assert find_qemu(made.label, need=TOOLS) == made
    assert ablated_names() == [made.label]
    # A second time nothing is made.
    written = made.path("img").stat().st_mtime_ns
    assert ablate(find_qemu(any_qemu.label), F).path("img").stat().st_mtime_ns == written
    assert made.version_text in run_tool(made.command("io", "--version"), environment=made.environment).stdout
    remove_ablated(made.label)
    assert not list((cache / "qemu").glob("*without*"))
    with pytest.raises(MissingToolError, match=f"run: chainlift qemu ablate {any_qemu.label} {F}"):
        find_qemu(made.label)


@pytest.fixture
def prefix(tmp_path):
    """An installation of our own: the host's qemu-img alone."""
    (tmp_path / "q" / "bin").mkdir(parents=True)
    shutil.copy(find_qemu("host").path("img").resolve(), tmp_path / "q" / "bin" / "qemu-img")
    return tmp_path / "q"


def test_a_copy_of_a_qemu_that_has_changed_since_is_not_used(cache, prefix):
    made = ablate(find_qemu(str(prefix), need=["img"]), F)
    os.utime(prefix / "bin" / "qemu-img", ns=(1, 1))
    with pytest.raises(MissingToolError, match=f"is another QEMU than the copy .* chainlift qemu ablate {prefix} {F}"):
        find_qemu(made.label, need=["img"])
    # It is listed, so that it can be removed, and made anew.
    assert ablated_names() == [made.label]
    assert ablate(find_qemu(str(prefix), need=["img"]), F) == find_qemu(made.label, need=["img"])
    assert [path.name for path in (cache / "qemu").glob("*without*")] == [made.path("img").parents[1].name]


def test_a_copy_that_reads_other_bytes_is_not_kept(cache, prefix, monkeypatch):
    # A read that returns 1 at once has read nothing.
    wrong = Ablation(("bdrv_co_preadv_part",), "bdrv_co_preadv", recurses=False)
    monkeypatch.setitem(ablation.KNOWN, "bdrv_co_preadv_part", wrong)
    with pytest.raises(QemuError, match=r"reads another byte at 0 of a chain|does not read|failed"):
        ablate(find_qemu(str(prefix), need=["img"]), "bdrv_co_preadv_part")
    assert not list((cache / "qemu").glob("*without*"))


def test_of_a_chain_that_is_not_what_it_should_be_each_program_says_so(monkeypatch):
    qemu = find_qemu("host", need=TOOLS)
    real = read_check._chain

    def other(folder):
        image, expected = real(folder)
        return image, expected[:-65536] + bytes([expected[-1] ^ 1]) * 65536

    monkeypatch.setattr(read_check, "_chain", other)
    for tool in TOOLS:
        alone = dict.fromkeys(("img", "io", "storage_daemon", "system")) | {tool.replace("-", "_"): qemu.path(tool)}
        with pytest.raises(QemuError, match=f"{qemu.path(tool)}: (reads another byte|does not read a chain right)"):
            check_reads(dataclasses.replace(qemu, **alone))


def test_what_cannot_be_is_said_and_leaves_nothing(cache, prefix):
    with pytest.raises(InputError, match="nothing is known of what bdrv_open may be replaced by"):
        ablate(find_qemu("host"), "bdrv_open")
    with pytest.raises(InputError, match="nothing is known of what x may be replaced by"):
        find_qemu("host,without=x")
    with pytest.raises(InputError, match="is a copy already"):
        ablate(dataclasses.replace(find_qemu("host"), without=F), F)
    with pytest.raises(MissingToolError, match="chainlift qemu add debian:sid"):
        find_qemu(f"debian:sid,without={F}")
    with pytest.raises(MissingToolError, match="there is no"):
        remove_ablated(f"host,without={F}")
    assert not list((cache / "qemu").glob("*without*"))


def chainlift(*words):
    return subprocess.run([sys.executable, "-m", "chainlift", "qemu", *words], capture_output=True, text=True)


def test_the_command(cache, prefix):
    done = chainlift("ablate", str(prefix), F)
    label = f"{prefix},without={F}"
    assert (done.returncode, done.stdout.partition(": ")[0]) == (0, label)
    assert "copying qemu-img without bdrv_" in done.stderr
    done = chainlift("ablate", str(prefix), "main")
    assert (done.returncode, done.stdout) == (2, "")
    assert chainlift("remove", label).returncode == 0
    assert chainlift("remove", label).returncode == 2


def test_the_list_has_copies_beside_their_originals(cache, prefix):
    ablate(find_qemu("host"), F)
    ablate(find_qemu(str(prefix), need=["img"]), F)
    done = chainlift("list", "--json")
    rows = valid("qemu list", done.stdout)["qemus"]
    host, copy = (next(row for row in rows if row["qemu"] == name) for name in ("host", f"host,without={F}"))
    assert {**copy, "qemu": "host", "path": host["path"]} == host
    assert copy["path"].startswith(str(cache))
    # One that has no system emulator is told of, and does not keep the others from being listed.
    assert f"QEMU {prefix},without={F} has no qemu-system-x86_64" in done.stderr
