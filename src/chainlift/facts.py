"""What is known of releases of QEMU and libvirt, as one table: since when, until when, and where it was seen.

Code asks a fact whether it holds for a version, or what its value is there; nobody else compares versions of QEMU or
libvirt. ``docs/qemu-facts.md`` is made from it (``script/docs``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

Version = tuple[int, ...]


@dataclass(frozen=True)
class Fact:
    """Something that holds for some releases."""

    #: One sentence.
    what: str
    #: Where it was seen: a function of the source, a test, a result.
    seen: str
    #: The first release with it; None: all that are known.
    since: Version | None = None
    #: The first release without it again; None: none yet.
    until: Version | None = None
    program: str = "QEMU"

    def holds(self, version: Version) -> bool:
        """Whether a release is one of those."""
        return (self.since is None or version >= self.since) and (self.until is None or version < self.until)


@dataclass(frozen=True)
class Value:
    """A number that differs from release to release."""

    what: str
    seen: str
    #: Release and number, the oldest first; a release has the number of the last that is not newer.
    values: tuple[tuple[Version, int], ...]
    program: str = "QEMU"

    def at(self, version: Version) -> int:
        """Return the number of a release; of one that is older than all, the oldest's."""
        return next((value for first, value in reversed(self.values) if version >= first), self.values[0][1])

    @property
    def least(self) -> int:
        """The smallest of all releases."""
        return min(value for _, value in self.values)


SPOKEN: Final = Fact("chainlift speaks its command line", "`-machine memory-backend=` came with 5.0", since=(5, 0, 0))
PRESENT: Final = Fact("`qemu-img map --output=json` says `present`", "`qemu-img.c`, `dump_map_entry()`", since=(6, 1))
COMPRESSED: Final = Fact("the same says `compressed`", "`qemu-img.c`, `dump_map_entry()`", since=(8, 2))
EXPORTS: Final = Fact(
    "`block-export-add` works in every program", "`qapi/block-export.json`; the system emulator has it since 5.2",
    since=(6, 0, 0),
)  # fmt: skip
CX16: Final = Fact(
    "TCG leaves wrong flags after `cmpxchg16b`: Debian 13's kernel panics, so that guests are started without it",
    "`target/i386/tcg`; three of four boots on 7.2", until=(8, 0, 0),
)  # fmt: skip
READ_SUBCLUSTERS: Final = Fact(
    "`block-stream` into an image with subclusters (`extended_l2`) ends QEMU: ``Assertion `skip_bytes < pnum' failed``",
    "`block/io.c`, `bdrv_co_do_copy_on_readv()`; `tests/lift/live/test_stream.py`", until=(8, 1, 0),
)  # fmt: skip
LOCKLESS: Final = Fact(
    "nodes have no lock of their AioContext any more; before, a node that is freed inside `blockdev-reopen` in an "
    "iothread ends QEMU", "`qemu_mutex_unlock_impl: Operation not permitted`; `tests/lift/live/test_pivot.py`",
    since=(9, 0, 0),
)  # fmt: skip
POLLS_ALL: Final = Fact(
    "every change of the graph polls all nodes there are", "`block.c`, `bdrv_drain_all_begin()`; `bench/live/pivot.py`",
    since=(10, 1, 0),
)  # fmt: skip
GENTLE_EXTENTS: Final = Value(
    "extents of an index that keep the main loop for less than 0.1 s when they are added or closed",
    "`bench/live/pivot.py`: one costs 0.2 ms on 7.2, 0.4 ms on 10.0", (((0, 0, 0), 384), ((9, 0, 0), 192)),
)  # fmt: skip
LONGEST_READ: Final = Value(
    "layers over the base that a read of the host falls through; one more overflows a coroutine's stack (SIGSEGV)",
    "`results/limits`, by bisection", (((5, 2), 1101), ((7, 2), 1085), ((10, 0), 867), ((11, 1), 906)),
)  # fmt: skip
SYNCHRONOUS: Final = Fact(
    "`blockcopy --synchronous-writes`: the copy ends also where a guest writes faster than it is copied",
    "`virsh(1)`", since=(8, 0, 0), program="libvirt",
)  # fmt: skip
REVERTS: Final = Fact(
    "`snapshot-revert` goes back to external snapshots; a child's definition keeps naming the layer of a parent that "
    "was forgotten", "`tests/lift/domain`", since=(9, 9, 0), program="libvirt",
)  # fmt: skip
NESTS: Final = Fact(
    "an answer of QEMU's may nest 32 levels deep (json-c): a domain with more than 24 layers over a plain base does "
    "not start, and a restart of the daemon ends one that runs", "tried on 11.3; `tests/field/test_libvirt_limits.py`",
    since=(10, 8, 0), until=(12, 0, 0), program="libvirt",
)  # fmt: skip
