"""The model's parameters: what one step of QEMU's work takes, on one host and in one release."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

#: How much less sure figures are that were measured on another host.
_SCALED = 0.5
Aio = Literal["threads", "io_uring"]


#: How pydantic, which costs as much as reading a chain of 300, checks a file that holds them; nobody else needs it.
_STRICT = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How far figures may be off: 0.2 is a factor of 1.2 either way, in nine of ten cases."""

    __pydantic_config__ = _STRICT

    read: float
    write: float
    memory: float
    open: float

    def __post_init__(self) -> None:
        _require_positive(self)


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """One QEMU on one host. Functions are those of QEMU's block layer."""

    __pydantic_config__ = _STRICT

    schema_version: Literal[1] = 1
    #: As ``-version`` prints it.
    qemu: str
    #: In words: calibrated here, or shipped and scaled.
    origin: str
    #: A request to the block layer, ...
    request_s: float
    #: ... and what one takes more that no file is read for: it ends in a bottom half, for which the event loop is woken
    #: (``blk_aio_complete_bh()``). (0: measured before it was known.)
    bottom_half_s: float = 0.0
    #: What a write takes more than a read of the same data, before any walk, and a flush with nothing to write back.
    write_s: float
    flush_s: float
    #: A read of a file that a piece of a request ends in: the system call and the coroutine's switches; what a wake of
    #: a thread of the pool takes more (``aio=threads``).
    io_s: float
    thread_s: float
    #: A byte that is copied out of the page cache, and one that is set to zero.
    copy_byte_s: float
    zero_byte_s: float
    #: What a byte takes more in the first 64 KiB of a piece, until the processor foresees what it copies.
    start_byte_s: float
    #: A piece of a request at a layer: the tracked request, the coroutine's frame (``bdrv_co_preadv_part()``), ...
    level_s: float
    #: ... and finding its cluster, where the layer has a table for the place (``qcow2_get_host_offset()``).
    lookup_s: float
    #: A piece of a request that was cut, which is a task of its own (``qcow2_add_task()``).
    task_s: float
    #: What a level takes more for each one above it, in all pieces but one: they wait side by side, each in a coroutine
    #: whose stack grows with every level, and push each other out of the near cache. (0: measured before it was known.)
    task_depth_s: float = 0.0
    #: Walks over the whole graph before a request reaches the first node (``blk_is_available()``): 2 up to 7.2, then 1.
    entry_walks: int
    #: A visit of a node by ``bdrv_(co_)is_inserted()`` in a walk over nodes that the processor's near cache keeps, ...
    visit_s: float
    #: ... and what a visit of one costs more that it does not.
    far_visit_s: float
    #: Nodes that the near cache keeps.
    near_nodes: float
    #: A slice of an L2 table that is not in the cache is read, and that for each of its bytes.
    table_s: float
    table_byte_s: float
    #: A compressed cluster, and a byte that is decompressed; data differ.
    inflate_s: float
    zlib_byte_s: float
    zstd_byte_s: float
    #: Memory of a layer beside its L2 tables: its nodes, and so many of its clusters (the refcount table is one); and
    #: of an extent.
    node_bytes: float
    node_clusters: float
    extent_bytes: float
    #: Opening: an image, a layer more, a pair of layers (``bdrv_refresh_filename()``), three of them
    #: (``bdrv_drain_all_begin()``).
    open_s: float
    open_layer_s: float
    open_pair_s: float
    open_triple_s: float
    #: A file that an index points into, and a pair of them: newer releases go through all nodes for each that comes.
    open_extent_s: float
    open_extent_pair_s: float
    #: A byte of a layer's cluster, for a refcount table has one at least.
    open_byte_s: float
    #: Files that QEMU has open beside the chain's.
    own_files: int
    #: The longest chain that reads; found by bisection, not by a fit.
    longest_layers: int | None
    spread: Spread

    def __post_init__(self) -> None:
        _require_positive(self)
        if not self.near_nodes > 0:
            raise ValueError("near_nodes: 0")

    def scaled(self, factor: float, origin: str) -> Parameters:
        """Return them for a host on which everything takes ``factor`` times as long; spreads grow as they must.

        :param origin: what they are then, in words.
        """
        times = {name: getattr(self, name) * factor for field in fields(self) if (name := field.name).endswith("_s")}
        wider = {name: value + _SCALED for name, value in asdict(self.spread).items() if name != "memory"}
        spread = replace(self.spread, **wider)
        return replace(self, origin=origin, spread=spread, **times)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Parameters:
        """Return parameters that nobody but chainlift has written: their types are not checked."""
        return cls(**{**values, "spread": Spread(**values["spread"])})


def _require_positive(numbers: Spread | Parameters) -> None:
    for name, value in vars(numbers).items():
        if isinstance(value, int | float) and not value >= 0:
            raise ValueError(f"{name}: {value}")
