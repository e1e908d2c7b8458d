"""How a chain's summary looks on a terminal of 60 to 160 columns."""

from __future__ import annotations

import os
from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING

import click

from chainlift.cli.bars import bar as draw_bar
from chainlift.cli.bars import percent
from chainlift.cli.fitted import shorten, wrapped
from chainlift.errors import one_line
from chainlift.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chainlift.chain.broken import Broken
    from chainlift.chain.summary import ChainSummary, LayerSummary
    from chainlift.cost import Cost, Parameters

_HEIGHTS = " ▁▂▃▄▅▆▇█"
#: Chains of up to so many layers are listed whole; of longer ones the ends.
_LISTED_WHOLE = 16
_TOP, _BOTTOM = 5, 3
_BINS = 8
_COLOURS = {"problem": "red", "warning": "yellow", "note": "cyan"}
_SIGNS = {"problem": "x", "warning": "!", "note": "-"}


def lines(
    summary: ChainSummary,
    width: int,
    *,
    every_layer: bool,
    can_draw: bool,
    broken: Broken | None = None,
    cost: tuple[Parameters, Cost] | None = None,
) -> Iterator[str]:
    """Yield the lines.

    :param width: columns.
    :param every_layer: list all layers, however many.
    :param can_draw: whether the terminal has block characters.
    :param broken: where the chain ends too early: the summary is of what is above.
    :param cost: what the chain costs, and for which QEMU that is foreseen.
    """
    yield from _head(summary, broken)
    if cost is not None:
        yield from (line if can_draw else line.replace("µ", "u") for line in _cost(*cost))
    yield ""
    yield from _depths(summary, width, can_draw=can_draw, broken=broken)
    if len(summary.layers) > _LISTED_WHOLE:
        yield ""
        yield from _strips(summary, width, can_draw=can_draw)
    yield ""
    yield from _table(summary, width, every_layer=every_layer)
    if summary.length:
        yield _dim("  (frees: what deleting a layer would, if no other image stands on it)")
    if broken is not None:
        yield ""
        yield from _broken(broken)
    if summary.findings:
        yield ""
        yield from _findings(summary, width)


def _bold(text: str) -> str:
    return click.style(text, bold=True)


def _dim(text: str) -> str:
    return click.style(text, dim=True)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _head(summary: ChainSummary, broken: Broken | None) -> Iterator[str]:
    base = summary.layers[-1]
    below = f"{_count(summary.length, 'layer')} over {_name(base, summary)}" if summary.length else "no backing file"
    if broken is not None:
        below = f"broken below {_count(len(summary.layers), 'layer')}"
    yield f"{_bold(one_line(summary.path))}: {below}, a disk of {format_bytes(summary.virtual_size)}"
    stored = summary.visible_bytes + summary.shadowed_bytes
    shadowed = f"shadowed {format_bytes(summary.shadowed_bytes)}"
    if summary.shadowed_bytes:
        shadowed += f" ({percent(summary.shadowed_bytes, stored)} of what is stored)"
    yield (f"  on disk {format_bytes(summary.disk_bytes)}, visible {format_bytes(summary.visible_bytes)}, {shadowed}")
    if summary.length and broken is None:
        yield (
            f"  a full read falls through {summary.mean_depth:.1f} layers on average;"
            f" QEMU's L2 caches: {format_bytes(summary.l2_cache_bytes)}"
        )


def _cost(parameters: Parameters, cost: Cost) -> Iterator[str]:
    told = []
    if cost.read_4k_cpu_s is not None:
        told.append(f"a 4 KiB read {format_seconds(cost.read_4k_cpu_s.value)}")
    if cost.memory_bytes is not None:
        told.append(f"memory {format_bytes(cost.memory_bytes.value)}")
    if cost.open_cpu_s is not None:
        told.append(f"opening {format_seconds(cost.open_cpu_s.value)}")
    release = ".".join(parameters.qemu.split(maxsplit=1)[0].split(".")[:2])
    yield f"  foreseen for QEMU {release}: {', '.join(told)}"


def _name(layer: LayerSummary, summary: ChainSummary) -> str:
    path, directory = os.path.abspath(layer.path), os.path.dirname(os.path.abspath(summary.path))  # noqa: PTH100, PTH120
    return one_line(path.removeprefix(f"{directory}/") if path.startswith(f"{directory}/") else layer.path)


def _bins(layers: int) -> list[tuple[int, int]]:
    """Return ranges of depths (first, last): each depth where there are few, else top, bottom and bins between."""
    if layers <= _BINS + 2:
        return [(depth, depth) for depth in range(layers)]
    edges = [1 + round((layers - 2) * step / _BINS) for step in range(_BINS + 1)]
    middle = [(first, last - 1) for first, last in pairwise(edges)]
    return [(0, 0), *middle, (layers - 1, layers - 1)]


def _depths(summary: ChainSummary, width: int, *, can_draw: bool, broken: Broken | None) -> Iterator[str]:
    yield _bold("How far a read falls") + _dim("  (layers it passes, share of the disk)")
    rows = []
    for first, last in _bins(len(summary.layers)):
        label = f"{first}" if first == last else f"{first}-{last}"
        label += " active" if first == 0 else " base" if first == len(summary.layers) - 1 and broken is None else ""
        rows.append((label, sum(summary.answered_bytes[first : last + 1]), "blue"))
    nowhere = sum(summary.unanswered_bytes)
    if nowhere:
        rows.append(("never written" if broken is None else "what is gone", nowhere, "bright_black"))
    label_width = max(len(label) for label, _, _ in rows)
    room = width - label_width - 4 - 10 - 9
    largest = max(count for _, count, _ in rows)
    for label, count, colour in rows:
        bar = draw_bar(count, largest, room, can_draw=can_draw)
        yield (
            f"  {label:<{label_width}}  {click.style(bar, fg=colour)}{' ' * (room - len(bar))}"
            f"{format_bytes(count) if count else '-':>10}{percent(count, summary.virtual_size) if count else '':>9}"
        )
    if nowhere and broken is not None:
        yield _dim(f"  {'':<{label_width}}  (or was never written)")
    elif nowhere and summary.length:
        yield _dim(f"  {'':<{label_width}}  (what was never written falls through all of them)")


def _strips(summary: ChainSummary, width: int, *, can_draw: bool) -> Iterator[str]:
    room = min(len(summary.layers), width - 14)
    per_cell = len(summary.layers) / room
    each = "a layer" if per_cell <= 1 else f"{per_cell:.1f} layers"
    yield _bold("Layers from active to base") + _dim(f"  (a cell: {each}; the base is cut off)")
    for label, colour, values in (
        ("visible", "green", [layer.visible_bytes for layer in summary.layers]),
        ("shadowed", "red", [layer.shadowed_bytes for layer in summary.layers]),
    ):
        edges = [round(cell * per_cell) for cell in range(room + 1)]
        cells = [sum(values[first:last]) / (last - first) for first, last in pairwise(edges)]
        yield f"  {label:<9} |{click.style(_heights(cells, can_draw=can_draw), fg=colour)}|"


def _heights(cells: Sequence[float], *, can_draw: bool) -> str:
    steps = _HEIGHTS if can_draw else " .:-=+*#@"
    # The base outgrows all others: its cell is full, and the others are drawn to the largest of them.
    largest = max(cells[:-1], default=0) or 1
    return "".join(steps[min(8, ceil(8 * cell / largest))] for cell in cells)


def _table(summary: ChainSummary, width: int, *, every_layer: bool) -> Iterator[str]:
    layers = summary.layers
    if every_layer or len(layers) <= _LISTED_WHOLE:
        groups = [[layer] for layer in layers]
    else:
        middle = list(layers[_TOP : len(layers) - _BOTTOM])
        groups = [[layer] for layer in layers[:_TOP]] + [middle] + [[layer] for layer in layers[-_BOTTOM:]]
    wide = width >= 128
    titles = ["on disk", "visible", "shadowed", "frees"]
    if wide:
        titles += ["clusters visible", "shadowed", "L2 cache", "format"]
    widths = [max(10, len(title) + 2) for title in titles]
    if wide:
        widths[-1] = 16
    name_width = min(max(len(_name(group[0], summary)) for group in groups), width - 13 - sum(widths))
    name_width = max(name_width, 14)
    header = "".join(f"{title:>{size}}" for title, size in zip(titles, widths, strict=True))
    yield _bold(f"  {'depth':>9}  {'file':<{name_width}}{header}")
    for group in groups:
        first, last = group[0], group[-1]
        values = [
            _bytes(sum(layer.disk_bytes for layer in group)),
            _bytes(sum(layer.visible_bytes for layer in group)),
            _bytes(sum(layer.shadowed_bytes for layer in group)),
            _bytes(sum(layer.frees_bytes or 0 for layer in group)),
        ]
        if wide:
            values += [
                _clusters(sum(layer.visible_clusters for layer in group)),
                _clusters(sum(layer.shadowed_clusters for layer in group)),
                _bytes(sum(layer.l2_cache_bytes for layer in group)),
                _formats(group),
            ]
        cells = "".join(f"{value:>{size}}" for value, size in zip(values, widths, strict=True))
        if len(group) == 1:
            yield f"  {first.depth:>9}  {shorten(_name(first, summary), name_width):<{name_width}}{cells}"
        else:
            depth = f"{first.depth}-{last.depth}"
            yield _dim(f"  {depth:>9}  {shorten(_count(len(group), 'layer'), name_width):<{name_width}}{cells}")


def _bytes(count: int) -> str:
    return format_bytes(count) if count else "-"


def _clusters(count: float) -> str:
    return f"{count:,.0f}" if count >= 0.5 else "-"


def _formats(group: Sequence[LayerSummary]) -> str:
    kinds = sorted(
        {layer.format if layer.cluster_size is None else f"qcow2 {format_bytes(layer.cluster_size)}" for layer in group}
    )
    return kinds[0] if len(kinds) == 1 else "mixed"


def _broken(broken: Broken) -> Iterator[str]:
    sign = click.style(_SIGNS["problem"], fg=_COLOURS["problem"], bold=True)
    yield f"{sign} layer {broken.depth}: {one_line(broken.path)}: {one_line(broken.what)}"
    named = "" if broken.backing_name is None else f" as {broken.backing_name!r}"
    said = "" if broken.backing_format is None else f" ({broken.backing_format})"
    yield f"    {one_line(broken.named_by + ' names it' + named + said)}"
    yield f"    {one_line(broken.advice)}{'' if broken.mend is None else ':'}"
    if broken.mend is not None:
        yield f"    {one_line(broken.mend)}"


def _findings(summary: ChainSummary, width: int) -> Iterator[str]:
    for finding in summary.findings:
        where = _depth_list(finding.depths, len(summary.layers))
        sign = click.style(_SIGNS[finding.level], fg=_COLOURS[finding.level], bold=True)
        yield from wrapped(f"{sign} ", where + finding.what, width)
        if finding.action:
            yield from wrapped("    ", finding.action, width, dim=True)


def _depth_list(depths: Sequence[int], layers: int) -> str:
    if not depths or layers == 1:
        return ""
    if len(depths) == layers:
        return "every layer: "
    shown = ", ".join(str(depth) for depth in depths[:4])
    more = f" and {len(depths) - 4} more" if len(depths) > 4 else ""
    return f"layer{'s' if len(depths) > 1 else ''} {shown}{more}: "
