"""One archive of a result directory."""

import subprocess

import pytest
from tests.support.results import host_read, make_environment

from chainlift.errors import InputError, OperationError
from chainlift.results.bundle import CHECKSUMS, write_bundle
from chainlift.results.store import ResultDirectory


@pytest.fixture
def results(tmp_path):
    directory = ResultDirectory.create(tmp_path / "run", 'name = "run"\n')
    directory.write_environment(make_environment())
    directory.append(host_read(1, 0.1))
    (directory.path / "profiles").mkdir()
    (directory.path / "profiles/a.folded.gz").write_bytes(b"stacks")
    return directory


def test_a_bundle_has_every_file_and_its_checksum(results, tmp_path):
    names = write_bundle(results.path, tmp_path / "mine.tar.gz")
    subprocess.run(["tar", "-xzf", "mine.tar.gz"], cwd=tmp_path, check=True)
    root = tmp_path / "mine"
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert files == set(names) == {"plan.toml", "environment.json", "samples.jsonl", "profiles/a.folded.gz", CHECKSUMS}
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", CHECKSUMS], cwd=root, check=True)
    assert ResultDirectory.open(root).samples() == results.samples()


def test_the_same_results_give_the_same_bytes_and_an_archive_that_is_there_stays(results, tmp_path):
    write_bundle(results.path, tmp_path / "mine.tar.gz")
    before = (tmp_path / "mine.tar.gz").read_bytes()
    with pytest.raises(InputError, match="is there already"):
        write_bundle(results.path, tmp_path / "mine.tar.gz")
    assert (tmp_path / "mine.tar.gz").read_bytes() == before
    (tmp_path / "other").mkdir()
    write_bundle(results.path, tmp_path / "other/mine.tar.gz")
    assert (tmp_path / "other/mine.tar.gz").read_bytes() == before


def test_what_is_no_result_directory_or_cannot_be_written_is_refused(results, tmp_path):
    with pytest.raises(InputError, match="is not a result directory"):
        write_bundle(tmp_path, tmp_path / "mine.tar.gz")
    with pytest.raises(InputError, match="does not lie in what it is made of"):
        write_bundle(results.path, results.path / "mine.tar.gz")
    with pytest.raises(OperationError, match="cannot be written: No such file or directory"):
        write_bundle(results.path, tmp_path / "nowhere/mine.tar.gz")
    with results.lock(), pytest.raises(InputError, match="another study writes its results there"):
        write_bundle(results.path, tmp_path / "mine.tar.gz")
    assert not (tmp_path / "mine.tar.gz").exists()
