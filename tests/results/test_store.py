from datetime import UTC, datetime

import pytest

from chainlift.errors import InputError
from chainlift.results.model import Sample
from chainlift.results.store import ResultDirectory

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def sample(repeat: int, wall_s: float = 1.0) -> Sample:
    return Sample(test="read", length=300, repeat=repeat, started_at=NOW, metrics={"wall_s": wall_s})


def test_samples_come_back_in_order(tmp_path):
    results = ResultDirectory.create(tmp_path / "out", "a = 1\n")
    for repeat in range(3):
        results.append(sample(repeat))
    assert [s.repeat for s in ResultDirectory.open(tmp_path / "out").samples()] == [0, 1, 2]


def test_a_line_cut_off_by_a_kill_is_dropped_and_written_over(tmp_path):
    results = ResultDirectory.create(tmp_path / "out", "a = 1\n")
    results.append(sample(0))
    with (tmp_path / "out/samples.jsonl").open("ab") as stream:
        stream.write(b'{"test":"re')
    assert len(results.samples()) == 1
    results.append(sample(1))
    assert [s.repeat for s in results.samples()] == [0, 1]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    results = ResultDirectory.create(tmp_path / "out", "a = 1\n")
    (tmp_path / "out/samples.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"samples\.jsonl: line 1: not a sample"):
        results.samples()


def test_another_plans_directory_is_refused(tmp_path):
    ResultDirectory.create(tmp_path / "out", "a = 1\n")
    ResultDirectory.create(tmp_path / "out", "a = 1\n")
    with pytest.raises(InputError, match="another plan's results"):
        ResultDirectory.create(tmp_path / "out", "a = 2\n")


def test_a_directory_with_other_files_is_refused(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(InputError, match="is not a result directory"):
        ResultDirectory.create(tmp_path, "a = 1\n")


def test_the_csv_has_a_row_a_metric(tmp_path):
    results = ResultDirectory.create(tmp_path / "out", "a = 1\n")
    results.write_csv(
        [sample(0), Sample(test="stream", length=1, repeat=0, started_at=NOW, outcome="crashed", signal=11)]
    )
    rows = (tmp_path / "out/results.csv").read_text().splitlines()
    assert rows[1].endswith(",wall_s,1.0")
    assert ",crashed,11," in rows[2]
