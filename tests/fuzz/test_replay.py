"""Everything that fuzzing has found to reach new code, replayed."""

import importlib.util
from pathlib import Path

import pytest

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("chainlift_fuzz_targets", HERE / "targets.py")
targets = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(targets)


@pytest.mark.parametrize("name", targets.TARGETS)
def test_the_corpus_gives_answers_or_clean_errors(name):
    inputs = sorted((HERE / "corpus" / name).iterdir())
    assert inputs
    for path in inputs:
        targets.TARGETS[name](path.read_bytes())
