"""Random chains, made by QEMU's tools, must read and map as QEMU says, byte for byte and line for line."""

import pytest
from tests.support.chain_machine import ChainMachine, run_machine

pytestmark = pytest.mark.no_cover


@pytest.mark.integration
def test_fifty_random_chains_read_and_map_as_qemu_says():
    run_machine(ChainMachine, 50)


@pytest.mark.integration
@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
def test_a_thousand_random_chains_read_and_map_as_qemu_says():
    run_machine(ChainMachine, 1000)
