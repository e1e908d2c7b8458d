"""The fixtures of live lifts."""

from tests.lift.live.conftest import make_chain, same_bytes, start_daemon  # noqa: F401
