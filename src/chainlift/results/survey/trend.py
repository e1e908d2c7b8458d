"""Surveys of several days, and of several hosts, laid side by side."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import TYPE_CHECKING, Final

from chainlift.results.survey.overview import danger_of
from chainlift.results.survey.store import Survey

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from chainlift.results.survey.records import Chain

_DAY_S: Final = 86_400.0
#: Of points in time that are looked at: pairs grow as the square.
_MOST_POINTS: Final = 64
#: A forecast further away than this says no more than that it is far.
_FARTHEST_DAYS: Final = 3650.0


@dataclass(frozen=True)
class Trend:
    """How a chain has changed."""

    chain: Chain
    #: When it was looked at, and its length then, the oldest first.
    points: tuple[tuple[datetime, int], ...]
    layers_per_day: float
    bytes_per_day: float
    #: The nearest limit of its length; None where none is known.
    limit: int | None
    #: Until it is reached; 0 where it is passed already; None where the chain does not grow to it.
    days_left: float | None


@dataclass(frozen=True)
class Together:
    """Several surveys as one."""

    #: What was found last of each chain.
    survey: Survey
    #: Of the chains that an earlier survey knows, too.
    trends: tuple[Trend, ...]
    #: Chains that only the newest survey of their place knows, and that it knows no more.
    new: int
    gone: int


def lay_together(surveys: Sequence[Survey]) -> Together:
    """Make one survey of several: of one place on several days, of several hosts, or both.

    :param surveys: at least one.
    """
    ordered = sorted(surveys, key=lambda survey: survey.head.started_at)
    newest = ordered[-1]
    seen: dict[tuple[str, str], list[tuple[datetime, Chain]]] = {}
    for survey in ordered:
        for chain in survey.chains:
            seen.setdefault(chain.key, []).append((survey.head.started_at, chain))
    gone = {key for key, points in seen.items() if _is_gone(points, ordered)}
    known = {key: points for key, points in seen.items() if key not in gone}
    sources = tuple(dict.fromkeys(source for survey in ordered for source in survey.sources))
    whole = Survey(newest.head.model_copy(update={"sources": sources}), end=newest.end)
    whole.by_key = {key: points[-1][1] for key, points in known.items()}
    latest = {survey.sources: survey for survey in ordered}
    whole.troubles = [trouble for survey in latest.values() for trouble in survey.troubles]
    trends = tuple(_trend(points) for points in known.values() if len(points) > 1)
    new = sum(len(points) == 1 for points in known.values()) if len(ordered) > 1 else 0
    return Together(whole, trends, new, len(gone))


def _is_gone(points: list[tuple[datetime, Chain]], ordered: Sequence[Survey]) -> bool:
    """Whether a later survey has looked where a chain was, to its end, and has not found it."""
    last, chain = points[-1]
    return any(
        survey.head.started_at > last and survey.end is not None and _covers(survey, chain) for survey in ordered
    )


def _covers(survey: Survey, chain: Chain) -> bool:
    troubled = {(trouble.host, trouble.path) for trouble in survey.troubles if trouble.left_out}
    places = [source.path.rstrip("/") for source in survey.sources if source.host == chain.host]
    in_place = any(chain.path == place or chain.path.startswith(f"{place}/") for place in places)
    return in_place and not any(
        host == chain.host and (chain.path == path or chain.path.startswith(f"{path}/")) for host, path in troubled
    )


def _trend(points: Sequence[tuple[datetime, Chain]]) -> Trend:
    points = points[-_MOST_POINTS:]
    chain = points[-1][1]
    times = [time.timestamp() / _DAY_S for time, _ in points]
    layers = slope(times, [float(one.length) for _, one in points])
    danger = danger_of(chain)
    limits = [limit for limit in (chain.libvirt_longest, chain.crash_layers) if limit is not None]
    limit = danger.limit if danger is not None and danger.is_passed else min(limits, default=None)
    days_left = None
    if limit is not None and chain.length > limit:
        days_left = 0.0
    elif limit is not None and layers > 0:
        days = (limit - chain.length) / layers
        days_left = days if days <= _FARTHEST_DAYS else None
    return Trend(
        chain,
        tuple((time, one.length) for time, one in points),
        layers,
        slope(times, [float(one.disk_bytes) for _, one in points]),
        limit,
        days_left,
    )


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Return by how much values change in a unit of time: the median over all pairs (Theil and Sen).

    A chain that is pruned every night goes up and down, and does not grow: one fall among many rises does not matter,
    and neither do many that end where they began.
    """
    pairs = [(b - a, later - earlier) for (a, earlier), (b, later) in combinations(zip(times, values, strict=True), 2)]
    return median([change / span for span, change in pairs if span > 0] or [0.0])
