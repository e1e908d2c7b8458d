"""What the model foresees: figures, each with how far it may be off."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Figure:
    """A foreseen quantity; the unit is in the name of the field that holds it."""

    value: float
    #: Between these it is in nine of ten cases, as the calibration's own residuals say.
    low: float
    high: float

    @classmethod
    def within(cls, value: float, spread: float) -> Figure:
        """Make a figure that may be off by a factor of ``1 + spread`` either way."""
        return cls(value, value / (1 + spread), value * (1 + spread))


@dataclass(frozen=True)
class Cost:
    """What one chain costs; None is what the model does not know, and :attr:`unknown` says why.

    CPU seconds are those of QEMU for one request with what it reads in the page cache, user and system together. Reads
    lie anywhere on the disk, also where nothing was ever written: that is what a backup or a stream does.
    """

    #: Of one read of 4 KiB at random, once QEMU's caches are as full as they get.
    read_4k_cpu_s: Figure | None
    read_64k_cpu_s: Figure | None
    read_4m_cpu_s: Figure | None
    #: Of one read, the whole disk being read in sequence.
    sequential_4k_cpu_s: Figure | None
    sequential_64k_cpu_s: Figure | None
    sequential_4m_cpu_s: Figure | None
    #: What a guest waits for one such read at random on an idle host: the CPU time and the wake of a thread. What a
    #: device takes for data that is not in the page cache comes on top.
    read_4k_latency_s: Figure | None
    read_64k_latency_s: Figure | None
    read_4m_latency_s: Figure | None
    #: Of a write of 4 KiB over data that the active layer has, and of a flush with nothing to write: both ask once
    #: whether a medium is inserted, down the whole chain.
    write_4k_cpu_s: Figure | None
    flush_cpu_s: Figure | None
    #: Resident memory that the chain takes, once all of the disk was read; QEMU itself and the guest's RAM left out.
    memory_bytes: Figure | None
    #: CPU seconds until the chain is open.
    open_cpu_s: Figure | None
    #: Open files: those of the layers, and QEMU's own.
    file_descriptors: Figure | None
    #: Layers over the base beyond which this QEMU dies of a read (SIGSEGV).
    longest_layers: Figure | None
    #: What the model does not know of this chain, a phrase each.
    unknown: tuple[str, ...] = ()

    def figures(self) -> dict[str, Figure | None]:
        """Return all figures by their names, units in them."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "unknown"}

    def as_json(self) -> dict[str, object]:
        """Return the figures with ``_low`` and ``_high`` beside each, and what is not known."""
        flat: dict[str, object] = {}
        for name, figure in self.figures().items():
            flat[name] = None if figure is None else figure.value
            flat[f"{name}_low"] = None if figure is None else figure.low
            flat[f"{name}_high"] = None if figure is None else figure.high
        return {**flat, "unknown": list(self.unknown)}
