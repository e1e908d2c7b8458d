"""A domain to ask libvirt for."""

from tests.lift.domain.conftest import machine, place  # noqa: F401
