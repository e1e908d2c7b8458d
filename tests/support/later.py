"""Tests of what is right and not yet so."""

from __future__ import annotations

import pytest


def not_yet(reason: str) -> pytest.MarkDecorator:
    """Expect a test to fail; the day it passes, this turns red and goes."""
    return pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason)
