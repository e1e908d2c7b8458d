"""Where QEMU's time goes: profile a workload and name what was seen."""

from __future__ import annotations

import platform
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from chainlift.errors import InputError, OperationError, QemuCrashed
from chainlift.host.process import describe_end
from chainlift.profiling.elf import machine_of
from chainlift.profiling.perf import Address, PerfRecorder, PerfSample, check_perf, read_samples
from chainlift.profiling.stacks import VCPU, Stacks
from chainlift.profiling.symbols import Symbols, load_symbols
from chainlift.qemu.bench import READS, reading, streaming

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    from chainlift.qemu.bench import Working
    from chainlift.qemu.binary import Qemu
    from chainlift.qemu.process import QemuProcess

Workload = Literal["read-4k", "read-64k", "read-4m", "stream"]

#: The function that the experiment found: its name before and since QEMU 8.0.
IS_INSERTED = ("bdrv_is_inserted", "bdrv_co_is_inserted")

#: What QEMU calls a virtual CPU's thread with ``-name ...,debug-threads=on``: "CPU 0/KVM", "CPU 1/TCG".
_VCPU_THREAD = "CPU "


@dataclass(frozen=True)
class Profile:
    """What a profile has shown.

    :ivar hints: what would give more names: one line a file that lacks symbols.
    """

    stacks: Stacks
    hints: tuple[str, ...] = ()

    @property
    def share_is_inserted(self) -> float:
        """The share of samples inside ``bdrv_is_inserted``, 0 to 1."""
        return self.stacks.share_of(*IS_INSERTED)

    def metrics(self) -> dict[str, float]:
        """Return what a result file's sample holds of it; of a guest's QEMU also without the virtual CPUs' threads."""
        metrics = {
            "samples": float(self.stacks.total),
            "share_is_inserted": self.share_is_inserted,
            "unknown_share": self.stacks.unknown_share,
        }
        rest = self.stacks.without(VCPU)
        if rest.total < self.stacks.total:
            metrics["vcpu_share"] = 1 - rest.total / self.stacks.total
            metrics["share_is_inserted_without_vcpus"] = rest.share_of(*IS_INSERTED)
        return metrics


class Namer:
    """Gives names to addresses; reads each file once.

    :param extra: ``--symbols``: a file with the symbols of QEMU, used for every file whose build ID it has.
    """

    def __init__(self, extra: Path | None = None) -> None:
        self._extra = extra
        self._known: dict[str, Symbols | None] = {}
        self._unnamed: set[str] = set()

    def name(self, address: Address, *, leaf: bool) -> str:
        """Return the function at an address, or a name in brackets where it has none.

        :param leaf: whether the address is that of the next instruction; else it is a return address, and the call
            that it returns from is the instruction before it.
        """
        if address.file.startswith("["):
            return f"{address.kernel_function}_[k]" if address.kernel_function else address.file
        module = Path(address.file).name
        symbols = self._symbols(address.file)
        where = symbols.elf.address_of(address.offset - (not leaf)) if symbols else None
        if symbols is None or where is None:
            return f"[unknown:{module}]"
        if name := symbols.name_at(where):
            return name
        self._unnamed.add(address.file)
        begin = symbols.nameless_at(where)
        return f"[unknown:{module}]" if begin is None else f"[{module}+{begin:#x}]"

    @property
    def hints(self) -> tuple[str, ...]:
        """What would name the functions that had no name."""
        hints = (symbols.hint for file in sorted(self._unnamed) if _is_qemu(file) and (symbols := self._known[file]))
        return tuple(hint for hint in hints if hint)

    def _symbols(self, file: str) -> Symbols | None:
        if file not in self._known:
            try:
                path = Path(file)
                extra = self._extra if _is_qemu(file) else None
                self._known[file] = load_symbols(path, extra)
            except InputError:
                if self._extra:
                    raise
                self._known[file] = None
        return self._known[file]


def _is_qemu(file: str) -> bool:
    return Path(file).name.startswith("qemu")


def name_samples(samples: Iterable[PerfSample], symbols: Path | None = None) -> Profile:
    """Name what perf has sampled."""
    namer = Namer(symbols)
    found: Counter[tuple[str, ...]] = Counter()
    for sample in samples:
        last = len(sample.frames) - 1
        stack = [namer.name(frame, leaf=index == last) for index, frame in enumerate(sample.frames)]
        found[(*([VCPU] if sample.thread.startswith(_VCPU_THREAD) else ()), *stack)] += 1
    return Profile(Stacks(found), namer.hints)


def require_profiling(qemu: Qemu) -> None:
    """See that this QEMU can be profiled here, before anything is started.

    :raise MissingToolError: if there is no perf, or this user may not use it.
    :raise InputError: if the QEMU is of another architecture than the host.
    """
    machine = machine_of(qemu.path("img"))
    if machine is not None and machine != platform.machine():
        raise InputError(f"is built for {machine} and this host is {platform.machine()}", path=qemu.path("img"))
    check_perf()


def profile_workload(
    qemu: Qemu,
    image: Path,
    workload: Workload,
    *,
    scratch: Path,
    seconds: float = 5.0,
    frequency_hz: int = 199,
    symbols: Path | None = None,
    cache: str = "writeback",
    aio: str = "threads",
) -> Profile:
    """Profile QEMU while it works on an image for some seconds; opening the chain is not recorded.

    :param image: a qcow2 image; it is only read.
    :param workload: ``read-4k`` (every 260 KiB), ``read-64k`` and ``read-4m`` (sequential), by ``qemu-img bench``;
        ``stream``: ``block-stream`` into a temporary overlay by ``qemu-storage-daemon``.
    :param scratch: an existing directory for perf's data (some 15 MB a second) and the temporary overlay.
    :param symbols: a file with QEMU's symbols, where it has none itself.
    :raise MissingToolError: if there is no perf or this user may not use it.
    :raise QemuCrashed: if QEMU dies of the work.
    """
    require_profiling(qemu)
    with tempfile.TemporaryDirectory(prefix="profile-", dir=scratch) as name:
        folder = Path(name)
        working: AbstractContextManager[Working] = (
            streaming(qemu, image, folder, cache=cache)
            if workload == "stream"
            else reading(qemu, image, READS[workload], cache=cache, aio=aio)
        )
        data = folder / "perf.data"
        with working as work:
            try:
                with PerfRecorder(work.process.pid, data, frequency_hz=frequency_hz) as perf:
                    perf.begin()
                    work.go()
                    work.wait(seconds)
                    perf.end()
            except OperationError:
                _require_alive(work.process, image)
                raise
            _require_alive(work.process, image)
        profile = name_samples(read_samples(data), symbols)
    if not profile.stacks.total:
        raise OperationError("perf saw nothing: the work was done too soon", path=image)
    return profile


def _require_alive(process: QemuProcess, image: Path) -> None:
    """Raise :class:`QemuCrashed` if the process died by itself, which it may do before perf is attached to it."""
    if not process.running and (finished := process.wait()).returncode < 0:
        what = f"QEMU ended while it was profiled: {describe_end(finished.returncode)}"
        raise QemuCrashed(what, returncode=finished.returncode, path=image)
