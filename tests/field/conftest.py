"""Situations of people who run chains, from public reports: what is right then."""

import pytest
from tests.support.verbs import Verbs


@pytest.fixture(scope="session")
def verb():
    """Runs a verb of ours in a process of its own; returns its status and what it said."""
    with Verbs() as verbs:
        yield verbs
