"""The survey of this host."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from chainlift.host.peak import peak_rss_bytes
from chainlift.results.survey.records import Chain, End, Trouble
from chainlift.survey.crew import Crew
from chainlift.survey.find import find

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from chainlift.survey.settings import Settings


class Progress(Protocol):
    """What is told of a survey's progress."""

    def stage(self, name: str, total: int | None = None) -> None:
        """Begin a stage."""

    def step(self, done: int, note: str = "") -> None:
        """Say how far the stage is."""


def survey_host(
    paths: Sequence[str],
    settings: Settings,
    *,
    processes: int,
    timeout_s: float,
    with_libvirt: bool = True,
    known: Mapping[tuple[str, str], Chain] | None = None,
    progress: Progress | None = None,
) -> Generator[Chain | Trouble | End]:
    """Find and describe every chain. Nothing is written, and nobody who has an image open notices.

    :param paths: directories, and images.
    :param processes: that look at chains at a time.
    :param timeout_s: for one chain.
    :param with_libvirt: also the disks of this host's libvirt domains.
    :param known: records of an interrupted survey with the same settings: a chain of which no file was changed since is
        not looked at again, and not told again.
    :return: a record for each chain and for each thing that could not be looked at, as they are done; then the end.
    """
    started = time.monotonic()
    known = dict(known or {})
    found = find(paths, with_libvirt=with_libvirt, tell=None if progress is None else progress.stage)
    yield from found.troubles
    left_out = sum(trouble.left_out for trouble in found.troubles)
    there = {chain.key for chain in found.chains}
    for host, path in known.keys() - there:
        yield Trouble(host=host, path=path, what="is an active layer no more, or went", left_out=False)
    wanted = [chain for chain in found.chains if _is_new(known.get(chain.key), chain.stamp)]
    done = len(found.chains) - len(wanted)
    peak_bytes = 0
    if progress is not None:
        progress.stage("looking at chains", len(found.chains))
        progress.step(done)
    if wanted:
        with Crew(min(processes, len(wanted)), settings, timeout_s) as crew:
            for chain, record in crew.describe(wanted):
                done += 1
                left_out += isinstance(record, Trouble) and record.left_out
                yield record
                if progress is not None:
                    progress.step(done, chain.path)
            peak_bytes = crew.peak_bytes
    yield End(
        ended_at=datetime.now(UTC),
        images=found.images,
        chains=len(found.chains),
        disk_bytes=found.disk_bytes,
        left_out=left_out,
        took_s=round(time.monotonic() - started, 3),
        peak_bytes=max(peak_bytes, peak_rss_bytes()),
    )


def _is_new(known: Chain | None, stamp: str) -> bool:
    return known is None or known.stamp != stamp
