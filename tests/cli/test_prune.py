"""What prune and drop say, and how they end."""

import os
import time

import pytest
from tests.support import stock
from tests.support.json_schemas import valid
from tests.support.thinned import NOW_S, hourly_chain

from chainlift.qcow2.writer import write_image

pytestmark = pytest.mark.integration


def test_a_dry_run_is_a_table_and_what_follows_from_it(tmp_path, said, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("COLUMNS", "500")
    time.tzset()
    layers = hourly_chain(tmp_path / "c", 4)
    os.link(layers[2], tmp_path / "backup")
    status, out, err = said("prune", layers[-1], "--keep-last", "1", "--dry-run")
    monkeypatch.undo()
    time.tzset()
    assert status == 0
    taken = [time.strftime("%a %Y-%m-%d %H:%M", time.gmtime(NOW_S - 3600 * hours)) for hours in range(5)]
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in out.splitlines()]
    assert rows[0] == ["layer", "last write", "on disk", "what becomes of it"]
    fixed = "it has another name (a hard link) where nothing was searched"
    fates = [
        "stays: the image", "stays: last 1", f"stays: {fixed}",
        f"stays: {layers[2]} stands on it and cannot be written anew: it has another name (a hard link)",
        "stays: the base",
    ]  # fmt: skip
    assert [(row[0], row[1], row[3]) for row in rows[2:7]] == [
        (str(path), when, fate) for path, when, fate in zip(reversed(layers), taken, fates, strict=True)
    ]
    assert out.splitlines()[-1] == f"{layers[-1]}: nothing goes, 3 snapshots stay"
    assert err.splitlines()[0] == f"chainlift: kept {layers[2]}: {fixed}"


def test_what_was_done_is_said_in_a_line_and_who_was_asked_beside_it(tmp_path, said):
    layers = hourly_chain(tmp_path / "c", 5)
    status, out, err = said("prune", layers[-1], "--keep-last", "1", "--keep", layers[2])
    assert status == 0
    assert out.startswith(f"{layers[-1]}: 2 of 4 snapshots are deleted, ")
    assert "; 2 layers written anew, " in out
    assert err.startswith(f"chainlift: searched {tmp_path / 'c'} (")
    status, out, _ = said("drop", layers[-1], layers[2].name)
    assert status == 0
    assert out.startswith(f"{layers[-1]}: 1 of 2 snapshots is deleted, ")
    assert said("prune", layers[-1], "--keep-last", "9") == (0, f"{layers[-1]}: nothing goes, 1 snapshot stays\n", "")
    assert (dropped := said("drop", "--json", layers[-1], layers[4]))[0] == 0
    assert valid("drop", dropped[1])["deleted"] == [str(layers[4])]
    assert said("prune", layers[-1], "--keep-last", "9") == (0, f"{layers[-1]}: nothing goes, there is none\n", "")


def test_json_says_the_same(tmp_path, said):
    layers = hourly_chain(tmp_path / "c", 4)
    branch = stock.create(tmp_path / "c" / "branch", layers[1])
    status, out, err = said("prune", layers[-1], "--keep-last", "1", "--json")
    assert status == 0
    assert f"chainlift: kept {layers[1]}: {branch} stands on it" in err
    found = valid("prune", out)
    assert [(row["goes"], row["why"], row["kept_back"]) for row in found["layers"]] == [
        (False, "the image", False),
        (False, "last 1", False),
        (True, None, False),
        (False, f"{branch} stands on it", True),
        (False, "the base", False),
    ]
    assert found["deleted"] == [str(layers[2])]
    assert found["rewritten"] == [str(layers[3])]
    assert found["layers"][0]["time_s"] == NOW_S
    assert found["copied_bytes"] > 0 < found["freed_bytes"]
    assert not layers[2].exists()


def test_what_takes_more_than_before_is_not_called_freed(tmp_path, said):
    name = None
    for number, (size, count) in enumerate(((65536, 1), (4096, 8), (65536, 1))):
        write_image(tmp_path / f"{number}.qcow2", virtual_size=16 << 20, cluster_size=size,
                    clusters=[n * (1 << 20) // size for n in range(count)], data=b"x" * size * count,
                    backing_file=name, backing_format=name and "qcow2")  # fmt: skip
        name = f"{number}.qcow2"
    active = stock.create(tmp_path / "active", tmp_path / name)
    _, out, _ = said("drop", active, "1.qcow2")
    assert " is deleted, " in out
    assert " KiB more on disk; 1 layer written anew" in out


def test_bad_use_is_a_line(tmp_path, said):
    layers = hourly_chain(tmp_path / "c", 3)
    before = stock.everything(tmp_path)
    for words, line in (
        (("prune", layers[-1]), "nothing says what is to be kept"),
        (("prune", layers[-1], "--keep-last", "-2"), "-2 is not in the range"),
        (("prune", layers[-1], "--keep", "other"), "other: is no layer of the chain"),
        (("drop", layers[-1]), "Missing argument 'LAYER...'"),
        (("drop", layers[-1], layers[0]), "is the base of the chain, which always stays"),
        (("drop", layers[0], layers[0]), "is the image itself, which always stays"),
        (("prune", tmp_path / "none", "--keep-last", "1"), "No such file or directory"),
    ):
        status, out, err = said(*words)
        assert (status, out) == (2, ""), words
        assert line in err
        assert err.count("\n") == 1
    assert stock.everything(tmp_path) == before
