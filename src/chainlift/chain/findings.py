"""What is noteworthy about a chain, each in one line with what to do."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from chainlift import facts
from chainlift.chain.finding import Finding
from chainlift.chain.libvirt_limits import near_limit
from chainlift.qcow2.layout import Compatible, CryptMethod, Incompatible
from chainlift.units import counted, format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from chainlift.chain.chain import Chain
    from chainlift.chain.layer import Layer
    from chainlift.chain.summary import LayerSummary

#: From here on reading is slower by more than half (docs: what a long chain costs).
_LONG = 100


def find_all(chain: Chain, layers: Sequence[LayerSummary]) -> Iterator[Finding]:
    """Yield what is noteworthy, the worst first."""
    found = [finding for rule in _RULES for finding in rule(chain, layers)]
    order = ("problem", "warning", "note")
    yield from sorted(found, key=lambda finding: order.index(finding.level))


def _where(chain: Chain, is_so: Callable[[Layer], bool]) -> tuple[int, ...]:
    return tuple(depth for depth, layer in enumerate(chain.layers) if is_so(layer))


def _incompatible(flag: Incompatible) -> Callable[[Layer], bool]:
    # An index is marked corrupt on purpose, so that nothing writes through it.
    return lambda layer: (
        layer.image is not None and not layer.extents and flag in layer.image.header.incompatible_features
    )


def _quoted(layer: Layer) -> str:
    return shlex.quote(layer.path)


def _flags(chain: Chain, layers: Sequence[LayerSummary]) -> Iterator[Finding]:  # noqa: ARG001
    if depths := _where(chain, _incompatible(Incompatible.CORRUPT)):
        path = _quoted(chain.layers[depths[0]])
        yield Finding("problem", "marked corrupt: QEMU opens it for reading only", f"qemu-img check {path}", depths)
    if depths := _where(chain, _incompatible(Incompatible.DIRTY)):
        path = _quoted(chain.layers[depths[0]])
        yield Finding(
            "warning",
            "marked dirty: refcounts may be stale",
            f"if no QEMU has it open: qemu-img check -r all {path}",
            depths,
        )
    encrypted = _where(
        chain, lambda layer: layer.image is not None and layer.image.header.crypt_method is not CryptMethod.NONE
    )
    if encrypted:
        yield Finding("note", "encrypted: only its metadata is read here", "", encrypted)
    lazy = _where(
        chain,
        lambda layer: layer.image is not None and Compatible.LAZY_REFCOUNTS in layer.image.header.compatible_features,
    )
    if lazy:
        yield Finding("note", "lazy refcounts: dirty after a crash, until repaired", "", lazy)


def _lifted(chain: Chain, layers: Sequence[LayerSummary]) -> Iterator[Finding]:  # noqa: ARG001
    for depth, layer in enumerate(chain.layers):
        if layer.extents:
            yield Finding(
                "note",
                f"an index that points into {counted(layer.extents - 1, 'file')}: nobody may change what is in there",
                f"chainlift verify {_quoted(chain.layers[0])}",
                (depth,),
            )


def _in_use(chain: Chain, layers: Sequence[LayerSummary]) -> Iterator[Finding]:  # noqa: ARG001
    used = tuple(layer.depth for layer in layers if layer.in_use)
    if used:
        yield Finding("note", "in use by a writer (a running QEMU): what is shown may be changing", "", used)


def _formats(chain: Chain, layers: Sequence[LayerSummary]) -> Iterator[Finding]:  # noqa: ARG001
    guessed = tuple(
        depth
        for depth, layer in enumerate(chain.layers[:-1])
        if layer.backing_format is None and chain.layers[depth + 1].probed
    )
    if guessed:
        layer, below = chain.layers[guessed[0]], chain.layers[guessed[0] + 1]
        command = f"qemu-img rebase -u -F {below.format} -b {shlex.quote(layer.backing_name or '')} {_quoted(layer)}"
        yield Finding("warning", "names its backing file without a format: QEMU guesses it", command, guessed)
    clusters = sorted({layer.cluster_size for layer in chain.layers if layer.cluster_size is not None})
    if len(clusters) > 1:
        sizes = ", ".join(format_bytes(size) for size in clusters)
        yield Finding("note", f"layers differ in cluster size ({sizes})", "")
    old = _where(chain, lambda layer: layer.image is not None and layer.image.header.version == 2)
    if old:
        path = _quoted(chain.layers[old[0]])
        yield Finding("note", "qcow2 version 2: no zero clusters", f"qemu-img amend -o compat=1.1 {path}", old)


def _sizes(chain: Chain, layers: Sequence[LayerSummary]) -> Iterator[Finding]:
    sizes = [layer.virtual_size for layer in layers]
    short = tuple(depth for depth in range(1, len(sizes)) if sizes[depth] < min(sizes[:depth]))
    if short:
        yield Finding("note", "shorter than what lies on it: zeros are read past its end", "", short)
    large = tuple(depth for depth in range(1, len(sizes)) if sizes[depth] > sizes[0])
    if large:
        yield Finding(
            "note", f"larger than the disk of {format_bytes(chain.virtual_size)}: its end is hidden", "", large
        )


def _length(chain: Chain, layers: Sequence[LayerSummary]) -> Iterator[Finding]:  # noqa: ARG001
    if chain.length > facts.LONGEST_READ.least:
        yield Finding(
            "problem",
            f"{chain.length} layers: QEMU releases of today crash when they read through more than "
            f"{facts.LONGEST_READ.least} to {max(value for _, value in facts.LONGEST_READ.values):,}",
            f"before a guest starts on it: chainlift plan {_quoted(chain.layers[0])}",
        )
    elif chain.length >= _LONG:
        yield Finding(
            "warning",
            f"{chain.length} layers make every read slow",
            f"what a lift would take off: chainlift plan {_quoted(chain.layers[0])}",
        )


def _libvirt(chain: Chain, layers: Sequence[LayerSummary]) -> Iterator[Finding]:  # noqa: ARG001
    if (limit := near_limit(chain.layers)) is not None:
        path = _quoted(chain.layers[0])
        yield Finding(
            "warning",
            limit.describe(),
            f"for a disk of libvirt's: chainlift squash {path}, or with --libvirt DOMAIN while it runs",
        )


def _weight(chain: Chain, layers: Sequence[LayerSummary]) -> Iterator[Finding]:  # noqa: ARG001
    shadowed = sum(layer.shadowed_bytes for layer in layers)
    stored = shadowed + sum(layer.visible_bytes for layer in layers)
    if shadowed * 5 > stored:
        share = 100 * shadowed / stored
        yield Finding(
            "note", f"{format_bytes(shadowed)} ({share:.0f} %) of what is stored cannot be read from the top",
            "it is needed only where older snapshots are",
        )  # fmt: skip


def _extras(chain: Chain, layers: Sequence[LayerSummary]) -> Iterator[Finding]:
    with_snapshots = tuple(layer.depth for layer in layers if layer.snapshots and not chain.layers[layer.depth].extents)
    if with_snapshots:
        yield Finding("note", "internal snapshots: only the active state is looked at", "", with_snapshots)
    with_bitmaps = tuple(layer.depth for layer in layers if layer.bitmaps)
    if with_bitmaps:
        yield Finding("note", "dirty bitmaps", "", with_bitmaps)


_RULES = (_flags, _lifted, _length, _libvirt, _formats, _in_use, _sizes, _weight, _extras)
