"""What a survey says of all chains together, and which of them come first."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Final

from chainlift.results.survey.records import bin_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from chainlift.results.survey.records import Chain

#: CPU seconds are told of so many reads.
READS: Final = 1_000_000
#: A limit is near from this share of it on.
NEAR: Final = 0.75


@dataclass(frozen=True)
class Danger:
    """A limit that a chain has passed, or is near to."""

    #: Layers over the base up to which all is well.
    limit: int
    is_passed: bool
    what: str


@dataclass(frozen=True)
class Ranked:
    """A chain about which something should be done."""

    chain: Chain
    danger: Danger | None
    #: CPU seconds of a million reads of 4 KiB that the advice gives back; None where the model does not know.
    gives_back_cpu_s: float | None
    gives_back_memory_bytes: float | None


@dataclass(frozen=True)
class SharedBase:
    """A layer that several chains stand on."""

    host: str
    path: str
    chains: int
    #: What it and all below it take.
    disk_bytes: int


@dataclass(frozen=True)
class Overview:
    """All chains together."""

    chains: int
    running: int
    broken: int
    #: Chains by length, see :func:`~chainlift.results.survey.records.bin_of`; and of these the running ones.
    lengths: tuple[int, ...]
    running_lengths: tuple[int, ...]
    #: Bytes by the layers that a read of them passes: those with content, and those that no layer has.
    fall_bytes: tuple[int, ...]
    unwritten_bytes: tuple[int, ...]
    #: Content that nobody can read: in layers that no other chain stands on.
    unreadable_bytes: int
    #: What the policy lets go.
    policy_frees_bytes: int
    shared: tuple[SharedBase, ...]
    #: What comes first, first.
    ranking: tuple[Ranked, ...]
    #: Of what QEMU needs for the running chains, predicted: memory; and what the advice gives back of it.
    running_memory_bytes: float
    running_memory_back_bytes: float
    #: CPU seconds of a million reads of 4 KiB from each running chain; and what the advice gives back of them.
    running_cpu_s: float
    running_cpu_back_s: float


def overview(chains: Sequence[Chain]) -> Overview:
    """Put chains together."""
    running = [chain for chain in chains if chain.is_running]
    ranking = rank(chains)
    running_ranked = [ranked for ranked in ranking if ranked.chain.is_running]
    return Overview(
        chains=len(chains),
        running=len(running),
        broken=sum(chain.broken is not None for chain in chains),
        lengths=_lengths(chains),
        running_lengths=_lengths(running),
        fall_bytes=_sums(chain.fall_bytes for chain in chains),
        unwritten_bytes=_sums(chain.unwritten_bytes for chain in chains),
        unreadable_bytes=sum(chain.own_shadowed_bytes for chain in chains),
        policy_frees_bytes=sum(chain.advice.frees_bytes for chain in chains if chain.advice is not None),
        shared=shared_bases(chains),
        ranking=ranking,
        running_memory_bytes=sum((chain.cost and chain.cost.memory_bytes) or 0.0 for chain in running),
        running_memory_back_bytes=sum(ranked.gives_back_memory_bytes or 0.0 for ranked in running_ranked),
        running_cpu_s=READS * sum((chain.cost and chain.cost.read_4k_cpu_s) or 0.0 for chain in running),
        running_cpu_back_s=sum(ranked.gives_back_cpu_s or 0.0 for ranked in running_ranked),
    )


def danger_of(chain: Chain) -> Danger | None:
    """Return the limit that a chain has passed or is near to; the lowest of those that it has passed."""
    limits = [
        (chain.libvirt_longest, "libvirt starts no domain on more than {} layers"),
        (chain.crash_layers, "QEMU dies of a read through more than {} layers"),
    ]
    near = [(limit, what) for limit, what in limits if limit is not None and chain.length >= limit * NEAR]
    if not near:
        return None
    limit, what = min(near)
    return Danger(limit, chain.length > limit, what.format(limit))


def rank(chains: Iterable[Chain]) -> tuple[Ranked, ...]:
    """Return the chains about which something should be done, in the order in which to do it.

    First those that have passed a limit, then those that are near one; the running ones before the others; then what
    gives back most CPU time, then most memory.
    """
    ranked = [
        Ranked(chain, danger_of(chain), *_gives_back(chain))
        for chain in chains
        if chain.advice is not None or danger_of(chain) is not None
    ]
    return tuple(sorted(ranked, key=_order))


def shared_bases(chains: Iterable[Chain]) -> tuple[SharedBase, ...]:
    """Return the layers that several chains stand on, the one with most chains first."""
    bytes_of: dict[tuple[str, str], int] = {}
    count: Counter[tuple[str, str]] = Counter()
    for chain in chains:
        if chain.shared_base is not None:
            key = chain.host, chain.shared_base
            bytes_of[key] = chain.shared_bytes
            count[key] = max(count[key], chain.shared_by)
    return tuple(SharedBase(*key, chains, bytes_of[key]) for key, chains in count.most_common())


def _gives_back(chain: Chain) -> tuple[float | None, float | None]:
    today, after = chain.cost, None if chain.advice is None else chain.advice.cost
    if today is None or after is None:
        return None, None
    cpu = memory = None
    if today.read_4k_cpu_s is not None and after.read_4k_cpu_s is not None:
        cpu = max(0.0, READS * (today.read_4k_cpu_s - after.read_4k_cpu_s))
    if today.memory_bytes is not None and after.memory_bytes is not None:
        memory = max(0.0, today.memory_bytes - after.memory_bytes)
    return cpu, memory


def _order(ranked: Ranked) -> tuple[object, ...]:
    severity = 0 if ranked.danger is None else 1 + ranked.danger.is_passed
    cpu, memory = ranked.gives_back_cpu_s or 0.0, ranked.gives_back_memory_bytes or 0.0
    # Of chains whose reads kill QEMU no cost is known: the longest first.
    return -severity, not ranked.chain.is_running, -cpu, -memory, -ranked.chain.length, ranked.chain.key


def _lengths(chains: Iterable[Chain]) -> tuple[int, ...]:
    count = Counter(bin_of(chain.length) for chain in chains)
    return tuple(count[number] for number in range(max(count, default=-1) + 1))


def _sums(columns: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    total: list[int] = []
    for column in columns:
        total = [a + b for a, b in zip_longest(total, column, fillvalue=0)]
    return tuple(total)
