"""What there is to know of one chain, as one record."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from chainlift.chain.broken import summarize_intact
from chainlift.chain.libvirt_limits import libvirt_limit
from chainlift.chain.opening import open_intact
from chainlift.cost import predict, shape_of
from chainlift.errors import ImageError
from chainlift.host.libvirt_version import libvirt_version
from chainlift.lift.record.lifts import is_lift_file
from chainlift.results.survey.records import Chain, Trouble, bin_of
from chainlift.results.survey.records import Found as FoundRecord
from chainlift.survey.advice import advise
from chainlift.survey.foreseen import to_record
from chainlift.survey.words import readable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Literal

    from chainlift.chain.broken import Broken
    from chainlift.chain.layer import Layer
    from chainlift.chain.summary import ChainSummary
    from chainlift.survey.find import Found
    from chainlift.survey.settings import Settings

#: Of a record; a hostile chain may bring about any number.
_MOST_FINDINGS: Final = 16
_MOST_LETTERS: Final = 500


def describe(found: Found, settings: Settings) -> Chain | Trouble:
    """Look at a chain. Metadata is read, and nothing is written.

    :return: the record; or, where the image has gone meanwhile, that.
    :raise ImageError: if the image itself cannot be read.
    :raise PolicyError: if it is something else than an image by now.
    """
    started = time.monotonic()
    try:
        chain, cut = open_intact(found.path, format="qcow2")
    except ImageError:
        if not os.path.lexists(found.path):
            host, path = found.key
            return Trouble(host=host, path=path, what="went while the survey ran", left_out=False)
        raise
    with chain:
        summary, trouble = summarize_intact(chain, cut)
        layers = chain.layers[: len(summary.layers)]
        is_whole = trouble is None
        end = next(
            (depth for depth, layer in enumerate(layers) if layer.file.identity == found.shared_identity), len(layers)
        )
        shape = shape_of(summary) if settings.parameters is not None and is_whole else None
        cost = None if shape is None or settings.parameters is None else predict(shape, settings.parameters)
        advice = advise(found, chain, summary, shape, settings, end) if is_whole else None
        libvirt = libvirt_version()
        libvirt_longest = None if libvirt is None or not found.uses else libvirt_limit(libvirt, layers).longest
    return Chain(
        host=found.host,
        path=found.key[1],
        stamp=found.stamp,
        base=readable(found.base),
        shared_base=None if found.shared_base is None else readable(found.shared_base),
        shared_by=found.shared_by,
        uses=found.uses,
        held_by=readable(found.held_by),
        is_running=_is_running(found, summary),
        modified_at=datetime.fromtimestamp(found.modified_s, UTC),
        lift=_lift_of(layers),
        length=summary.length,
        virtual_size_bytes=summary.virtual_size,
        disk_bytes=found.own_bytes,
        shared_bytes=found.shared_bytes,
        visible_bytes=summary.visible_bytes,
        shadowed_bytes=summary.shadowed_bytes,
        own_shadowed_bytes=sum(layer.shadowed_bytes for layer in summary.layers[:end]),
        l2_cache_bytes=summary.l2_cache_bytes,
        mean_depth=summary.mean_depth,
        fall_bytes=_binned(summary.answered_bytes),
        unwritten_bytes=_binned(summary.unanswered_bytes),
        crash_layers=None if settings.parameters is None else settings.parameters.longest_layers,
        libvirt_longest=libvirt_longest,
        findings=tuple(_findings(summary, None if trouble is None else trouble[0])),
        broken=None if trouble is None else _short(f"{trouble[0].path}: {trouble[0].what}"),
        cost=to_record(cost),
        advice=advice,
        took_s=round(time.monotonic() - started, 6),
    )


def _is_running(found: Found, summary: ChainSummary) -> bool:
    return (
        any(use.is_running for use in found.uses)
        or any(holder.may_write for holder in found.holders)
        or summary.layers[0].in_use
    )


def _lift_of(layers: Sequence[Layer]) -> Literal["index", "squash"] | None:
    if any(layer.extents for layer in layers):
        return "index"
    return "squash" if any(is_lift_file(layer.path) for layer in layers) else None


def _binned(counts: Iterable[int]) -> tuple[int, ...]:
    """Add up bytes by depth, see :func:`~chainlift.results.survey.records.bin_of`; no empty bins at the end."""
    bins: list[int] = []
    for depth, count in enumerate(counts):
        if count:
            bins += [0] * (bin_of(depth) + 1 - len(bins))
            bins[bin_of(depth)] += count
    return tuple(bins)


def _findings(summary: ChainSummary, broken: Broken | None) -> Iterable[FoundRecord]:
    if broken is not None:
        what = f"{broken.path}: {broken.what}"
        yield FoundRecord(level="problem", what=_short(what), action=_short(broken.mend or broken.advice))
    for finding in summary.findings[:_MOST_FINDINGS]:
        yield FoundRecord(level=finding.level, what=_short(finding.what), action=_short(finding.action))


def _short(text: str) -> str:
    text = readable(text)
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}..."
