from dataclasses import fields, replace

import numpy as np
import pytest

from chainlift import open_chain
from chainlift.chain.summarize import summarize
from chainlift.cost import shape_of
from chainlift.cost.store import shipped_parameters
from chainlift.qcow2.writer import write_image

MIB = 1 << 20
K64 = 65536


@pytest.fixture
def zero():
    """Parameters of a QEMU whose every step takes no time at all."""
    one = shipped_parameters()[-1]
    return replace(one, **{name: 0.0 for field in fields(one) if (name := field.name).endswith("_s")})


@pytest.fixture
def chain_of(tmp_path):
    """Make a chain of so many empty layers over a base that has all of its disk."""

    def make(length, **options):
        write_image(tmp_path / "0", virtual_size=4 * MIB, clusters=np.arange(64), **options)
        for number in range(1, length + 1):
            below = {"backing_file": str(number - 1), "backing_format": "qcow2"}
            write_image(tmp_path / str(number), virtual_size=4 * MIB, **below)
        return tmp_path / str(length)

    return make


@pytest.fixture
def shape_at():
    def look(path, **options):
        with open_chain(path) as chain:
            return shape_of(summarize(chain), **options)

    return look
