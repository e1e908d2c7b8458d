"""The line of the model beside what was measured."""

import numpy as np
import pytest
from tests.support.results import host_read

from chainlift import open_chain
from chainlift.chain.summarize import summarize
from chainlift.cost.expected import expected_shape
from chainlift.cost.model import read_cpu_s
from chainlift.cost.shape import shape_of
from chainlift.cost.store import nearest_shipped, write_parameters
from chainlift.errors import InputError
from chainlift.qcow2.writer import write_image
from chainlift.report.data import Results
from chainlift.report.figures.hosts import draw_host_cpu
from chainlift.report.foreseen import foresee
from chainlift.report.measures import host_cpu
from chainlift.results.store import PARAMETERS

MIB = 1 << 20
K64 = 65536


def test_an_expected_chain_costs_what_one_with_a_map_costs(tmp_path):
    random, counts = np.random.default_rng(5), [512] + [20] * 30
    # The base has half of the disk, and each layer some of that.
    for number, count in enumerate(counts):
        clusters = np.arange(512) if not number else np.sort(random.choice(512, count, replace=False))
        below = {"backing_file": str(number - 1), "backing_format": "qcow2"} if number else {}
        write_image(tmp_path / str(number), virtual_size=64 * MIB, clusters=clusters, **below)
    with open_chain(tmp_path / "30") as chain:
        true = shape_of(summarize(chain))
    expected, parameters = expected_shape(64 * MIB, K64, counts), nearest_shipped("7.2")
    assert expected.entered_bytes.tolist() == pytest.approx(true.entered_bytes.tolist(), rel=0.1)
    for size in (4096, K64, 4 * MIB):
        assert read_cpu_s(expected, parameters, size) == pytest.approx(read_cpu_s(true, parameters, size), rel=0.05)


def seen(make, *, variant="4k-strided-d1", **more):
    of_samples = more.pop("sample", {})
    samples = [host_read(n, 0.004 * n, variant=variant, **of_samples) for n in (1, 2, 4)]
    results = Results.load([make(*samples, aio="io_uring", **more)])
    (measure,) = [host_cpu(m) for m in results.measures() if m.key == "request_s"]
    return results, foresee(results, results.series[0], measure)


def test_the_line_is_of_the_parameters_that_the_study_kept(make):
    results, shipped = seen(make)
    assert "shipped for QEMU 7.2.22, measured on another machine" in shipped.origin
    kept = nearest_shipped("7.2").scaled(3.0, "calibrated on this host")
    write_parameters(results.runs[0].path / PARAMETERS, {"host": kept})
    again = Results.load([results.runs[0].path])
    (measure,) = [host_cpu(m) for m in again.measures() if m.key == "request_s"]
    found = foresee(again, again.series[0], measure)
    assert found.origin == "calibrated on this host"
    assert found.points.keys() == {1}  # the chain that was built has no more layers
    assert found.points[1].value == pytest.approx(3 * shipped.points[1].value)
    picture = draw_host_cpu(again)
    assert "QEMU 7.2.22: calibrated on this host" in picture.caption
    (axes,) = picture.figure.axes
    dotted = [line for line in axes.lines if line.get_ydata()[0] == pytest.approx(found.points[1].value)]
    assert len(dotted) == 1


@pytest.mark.parametrize(
    "more",
    [
        {"variant": "4k-strided-d32"},
        {"cache_mode": "none"},
        {"sample": {"lift": "index"}},
        {"sample": {"setting": "l2_cache_size=1M"}},
    ],
)
def test_what_the_model_does_not_know_has_no_line(make, more):
    results, found = seen(make, **more)
    assert found is None
    assert "Dotted" not in draw_host_cpu(results).caption


def test_parameters_that_cannot_be_read_are_an_error(make):
    results, _ = seen(make)
    (results.runs[0].path / PARAMETERS).write_text('{"host": {}}')
    with pytest.raises(InputError, match="holds no parameters that can be read"):
        draw_host_cpu(results)
