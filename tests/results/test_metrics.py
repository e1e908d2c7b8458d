from pathlib import Path
from typing import get_args

import pytest

from chainlift.results.metrics import METRICS
from chainlift.results.model import Test as TestName
from chainlift.results.store import ResultDirectory

ROOT = Path(__file__).parents[2]
RECORDED = sorted(path.parent for path in [*ROOT.glob("results/*/plan.toml"), *ROOT.glob("tests/**/plan.toml")])


def test_every_test_says_what_it_measures():
    assert tuple(METRICS) == get_args(TestName)


@pytest.mark.parametrize("directory", RECORDED, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_was_recorded_is_declared(directory):
    samples = ResultDirectory.open(directory).samples()
    assert samples
    for sample in samples:
        assert sample.metrics.keys() <= METRICS[sample.test].keys(), sample.name
