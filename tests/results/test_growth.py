"""The fit of floor and exponent, and whether its intervals are intervals: simulated, with fixed seeds."""

import math
import re
import zlib

import numpy as np
import pytest

from chainlift.results.growth import fit_growth

LENGTHS = (1, 20, 50, 100, 200, 300)
SHAPES = {
    "quadratic": lambda n: 10 + 0.01 * n**2,
    "linear": lambda n: 10 + 0.1 * n,
    # From 200 layers on the tables do not fit into the CPU's cache any more.
    "linear with a cache step": lambda n: 10 + 0.1 * n * (1.8 if n >= 200 else 1),
    "no effect": lambda n: 10.0,
}
#: Relative noise by length: alike, and loud where a cell is short.
QUIET = dict.fromkeys(LENGTHS, 0.08)
LOUD = {n: 0.2 if n < 50 else 0.05 for n in LENGTHS}


def draw(rng, shape, noise, repeats):
    return {n: (shape(n) * np.exp(rng.normal(0, noise[n], repeats))).tolist() for n in LENGTHS}


def nearest_power(shape, noise):
    """What the fit gives for very many repeats: the exponent itself, or of the nearest power where none fits."""
    return fit_growth({n: [shape(n) * (1 - 1e-6), shape(n) * (1 + 1e-6)] for n in LENGTHS}).exponent


def simulate(name, noise, repeats, runs):
    """Return in which shares of the runs the interval holds the exponent, and an exponent is told."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    exponent = nearest_power(SHAPES[name], noise)
    fits = [fit_growth(draw(rng, SHAPES[name], noise, repeats)) for _ in range(runs)]
    covered = sum(f.exponent_low <= exponent <= f.exponent_high for f in fits) / runs
    return covered, sum(f.is_told for f in fits) / runs


@pytest.mark.parametrize("name", SHAPES)
def test_a_95_percent_interval_covers_95_percent(name):
    covered, told = simulate(name, QUIET, 4, 300)
    assert 0.93 <= covered <= 0.97
    assert told <= 0.05 if name == "no effect" else told > 0.9


@pytest.mark.long
@pytest.mark.parametrize("noise", [QUIET, LOUD], ids=["quiet", "loud"])
@pytest.mark.parametrize("repeats", [3, 5])
@pytest.mark.parametrize("name", SHAPES)
def test_a_95_percent_interval_covers_95_percent_in_many_runs(name, repeats, noise):
    covered, told = simulate(name, noise, repeats, 3000)
    # Where nothing is added, the loud lengths have hardly a part in the test, and it rejects less than 5 %.
    assert 0.93 <= covered <= (1.0 if name == "no effect" and noise is LOUD else 0.975)
    assert told <= 0.05 if name == "no effect" else told > 0.5


def exact(function, lengths=LENGTHS, spread=0.001):
    return {n: [function(n) * (1 + spread * k) for k in (-1, 0, 1)] for n in lengths}


def test_floor_factor_and_exponent_are_found_together():
    found = fit_growth(exact(lambda n: 9.0 + 2e-3 * n**2.3))
    assert found.is_told
    assert found.exponent == pytest.approx(2.3, abs=1e-3)
    assert found.exponent_low < 2.3 < found.exponent_high
    assert (found.floor, found.factor) == (pytest.approx(9.0, rel=1e-3), pytest.approx(2e-3, rel=1e-2))
    assert found(150) == pytest.approx(9.0 + 2e-3 * 150**2.3, rel=1e-3)
    assert found.samples == 18
    assert not found.misfit


def test_shapes_that_the_samples_reject_are_ruled_out():
    for function, name in (
        (lambda n: 1 + n, "linear"),
        (lambda n: 1 + n * math.log(n), "n log n"),
        (lambda n: 1 + n**2, "quadratic"),
    ):
        shapes = {s.name: s for s in fit_growth(exact(function)).shapes}
        assert [s.name for s in shapes.values() if not s.ruled_out] == [name]
        assert shapes[name].delta_aicc == 0


def test_a_step_is_no_power_and_is_said_not_to_be():
    assert fit_growth(exact(SHAPES["linear with a cache step"])).misfit


def test_no_length_is_dropped_without_being_named():
    samples = exact(lambda n: 1.0 + n**2) | {500: [9e5], 700: [], 900: [0.0, 1.0]}
    found = fit_growth(samples, left_out={1000: "crashed"})
    assert found.lengths == LENGTHS
    assert found.left_out == (
        (500, "one sample"), (700, "no sample"), (900, "a value that is not positive"), (1000, "crashed"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("samples", "why"),
    [
        ({}, "it takes 4 lengths with two repeats or more, there are 0"),
        (exact(lambda n: n, lengths=(1, 100, 300)), "there are 3"),
        ({n: [float(n)] for n in LENGTHS}, "there are 0"),
        (exact(lambda n: 10 + n, spread=0), "the repeats do not differ at all"),
        (exact(lambda n: 10 - n / 100), "the longest chain costs no more than the shortest"),
        (exact(lambda n: 10.0, spread=0.1), "the longest chain costs no more than the shortest"),
        # Only the longest chain costs more: how steeply, nobody knows.
        (exact(lambda n: 10 + 10 * (n == 300), spread=0.1), r"every exponent over \d\.\d fits the samples"),
    ],
)
def test_where_the_exponent_cannot_be_told_it_is_not(samples, why):
    found = fit_growth(samples)
    assert not found.is_told
    assert re.search(why, found.untold)


def test_a_longer_interval_comes_with_more_noise_and_a_shorter_one_with_more_repeats():
    rng = np.random.default_rng(5)

    def width(noise, repeats):
        found = fit_growth(draw(rng, SHAPES["quadratic"], dict.fromkeys(LENGTHS, noise), repeats))
        return found.exponent_high - found.exponent_low

    assert width(0.01, 5) < width(0.05, 5) < width(0.2, 5)
    assert width(0.1, 30) < width(0.1, 3)
