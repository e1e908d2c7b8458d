"""Recording the machine and the software that a study runs on."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift._version import __version__
from chainlift.errors import InputError
from chainlift.host.filesystem import Place, place_of
from chainlift.results.model import Environment, FilePlace, GuestFacts, QemuFacts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chainlift.guest.accel import Choice
    from chainlift.qemu.binary import Qemu
    from chainlift.study.chain_store import ChainDirectory
    from chainlift.study.plan import Plan


def describe_environment(
    plan: Plan,
    qemus: Sequence[Qemu],
    chosen: Choice,
    guest: GuestFacts | None,
    files: Sequence[FilePlace],
    limits: Sequence[str] = (),
) -> Environment:
    """Describe this machine as it is now."""
    return Environment(
        chainlift=__version__,
        started_at=datetime.now(UTC),
        hostname_hash=sha256(platform.node().encode()).hexdigest()[:12],
        cpu=_cpu_model(),
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        host_kernel=f"{platform.system()} {platform.release()}",
        operating_system=_operating_system(),
        cache_mode=plan.cache,
        aio=plan.aio,
        qemus=[
            QemuFacts(
                label=qemu.label,
                binary=_at_home(qemu.system or qemu.img),
                version=qemu.version_text,
                source=qemu.source,
                accelerator=chosen.name,
                accelerator_reason=chosen.reason,
            )
            for qemu in qemus
        ],
        guest=guest,
        files=list(files),
        limits=list(limits),
    )


def _at_home(path: Path | None) -> str:
    """Return a path's name without whose home it is in: results are shown to others."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path is not None and path.is_relative_to(home) else str(path)


def require_same_machine(earlier: Environment, now: Environment, path: Path) -> None:
    """Refuse to put new samples beside those of another machine or another QEMU.

    :raise InputError: saying what differs.
    """

    def facts(environment: Environment) -> dict[str, object]:
        return {
            "CPU": environment.cpu,
            "number of CPUs": environment.cpus,
            "host": environment.hostname_hash,
            "QEMUs": [(q.label, q.version) for q in environment.qemus],
            "accelerator": [q.accelerator for q in environment.qemus],
        }

    before, after = facts(earlier), facts(now)
    for name, value in after.items():
        if before[name] != value:
            raise InputError(
                f"the results there were measured with another {name}", path=path, hint="choose another --out"
            )


def places_of(chain: ChainDirectory, length: int, scratch: Path) -> list[FilePlace]:
    """Say where the base, the layers and a run's throw-away files lie; layers in one place are told together.

    :raise InputError: if they are not all on one file system: a difference measured between lengths could then be the
        storage's.
    """
    names = [(chain.layer(n).name, place_of(chain.layer(n).resolve())) for n in range(length + 1)]
    names.append(("throw-away active layers", place_of(scratch)))
    first_name, first = names[0]
    for name, place in names:
        if place.device_number != first.device_number:
            raise InputError(
                f"{first_name} lies on {first} and {name} on {place}: the storage's difference would be measured, "
                "not the chain's",
                path=chain.path,
                hint="put all of them on one file system",
            )
    found = []
    for place, group in groupby(names, key=lambda item: item[1]):
        members = [name for name, _ in group]
        title = members[0] if len(members) == 1 else f"{members[0]} ... {members[-1]}"
        found.append(_file_place(title, place))
    return found


def _file_place(title: str, place: Place) -> FilePlace:
    return FilePlace(
        path=title,
        file_system=place.file_system,
        device=place.device,
        mount_options=place.mount_options,
        rotational=place.rotational,
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _operating_system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"
