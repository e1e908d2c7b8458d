"""The figures of a report, one kind a file; each kind is left out where nothing was measured for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chainlift.report.figures import hosts, latency, lifts, live, memory, profiles, settings, shape, times

if TYPE_CHECKING:
    from chainlift.report.data import Results
    from chainlift.report.style import Picture

_KINDS = (
    lifts.draw_lifts,
    hosts.draw_hosts,
    hosts.draw_host_cpu,
    settings.draw_settings,
    latency.draw_latencies,
    times.draw_read,
    times.draw_boot,
    times.draw_stream,
    times.draw_stream_host,
    times.draw_random,
    live.draw_live,
    profiles.draw_hot_functions,
    shape.draw_shape,
)


def draw_all(results: Results) -> list[Picture]:
    """Draw every figure that there are results for."""
    pictures = [picture for kind in _KINDS if (picture := kind(results)) is not None]
    return pictures + memory.draw_memory(results)
