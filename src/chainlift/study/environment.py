"""Recording the machine and the software that a study runs on."""

from __future__ import annotations

import os
import platform
import shutil
from datetime import UTC, datetime
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift._version import __version__
from chainlift.errors import InputError
from chainlift.host.filesystem import Place, place_of
from chainlift.profiling.symbols import is_named
from chainlift.qemu.vm import MACHINE
from chainlift.results.model import Environment, FilePlace, GuestFacts, QemuFacts
from chainlift.study.fingerprint import checksums_of, commit, governor, mitigations

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
    host_aio: Mapping[str, tuple[str, str]] | None = None,
) -> Environment:
    """Describe this machine as it is now.

    :param plan: what is measured.
    :param qemus: with what.
    :param chosen: accelerator of each QEMU, and why.
    :param guest: that was booted; None: none was.
    :param files: where they lie.
    :param host_aio: how host reads read files, by QEMU, and why not by io_uring, where that was chosen here.
    """
    chosen_aio = host_aio or {}
    symbols = {qemu.label: has_symbols(qemu) for qemu in qemus}
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
                without=qemu.without,
                copy_of=qemu.copy_of,
                accelerator=chosen.name,
                accelerator_reason=chosen.reason,
                machine=MACHINE if guest is not None else "",
                has_symbols=symbols[qemu.label],
                sha256=checksums_of([qemu.system, qemu.img, qemu.storage_daemon]),
                host_aio=chosen_aio[qemu.label][0] if qemu.label in chosen_aio else "",
            )
            for qemu in qemus
        ],
        guest=guest,
        files=list(files),
        governor=governor(),
        mitigations=mitigations(),
        commit=commit(),
        limits=[
            *_limits(plan, chosen, symbols, boots=guest is not None),
            *(
                f"no io_uring for host reads of QEMU {label}, which therefore wake a thread for each request: {reason}"
                for label, (_, reason) in chosen_aio.items()
                if reason
            ),
        ],
    )


def has_symbols(qemu: Qemu) -> bool | None:
    """Say whether the static functions of a QEMU have names here; None where its files cannot be read as ELF.

    A debuginfod server is not asked: that may take minutes.
    """
    path = qemu.img or qemu.system
    try:
        return None if path is None else is_named(path)
    except (InputError, OSError):
        return None


def _limits(plan: Plan, chosen: Choice, symbols: Mapping[str, bool | None], *, boots: bool) -> list[str]:
    """Say what this machine cannot show."""
    found = []
    if boots and chosen.name == "tcg" and plan.accelerator != "tcg":
        found.append(f"no KVM: {chosen.reason}")
    nameless = [label for label, named in symbols.items() if named is False]
    if nameless and "profile" in plan.tests:
        found.append(f"no names of static functions in profiles of QEMU {', '.join(nameless)}: no symbols")
    if shutil.which("perf") is None:
        found.append("no profiles: perf is not installed")
    return found


def _at_home(path: Path | None) -> str:
    """Return a path's name without whose home it is in: results are shown to others."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path is not None and path.is_relative_to(home) else str(path)


def require_same_machine(earlier: Environment, now: Environment, path: Path) -> None:
    """Refuse to put new samples beside those of another machine or another QEMU.

    :param earlier: what the result directory says.
    :param now: what is so now.
    :param path: of the result directory.
    :raise InputError: saying what differs.
    """

    def facts(environment: Environment) -> dict[str, object]:
        shared = {q.label for q in earlier.qemus} & {q.label for q in now.qemus}
        # Where no guest was booted, there was no accelerator.
        guests = earlier.guest is not None and now.guest is not None
        return {
            "CPU": environment.cpu,
            "number of CPUs": environment.cpus,
            "host": environment.hostname_hash,
            "QEMU": sorted((q.label, q.version) for q in environment.qemus if q.label in shared),
            "accelerator": sorted({q.accelerator for q in environment.qemus}) if guests else None,
        }

    before, after = facts(earlier), facts(now)
    for name, value in after.items():
        if before[name] != value:
            raise InputError(
                f"the results there were measured with another {name}", path=path, hint="choose another --out"
            )


def extended_environment(earlier: Environment, now: Environment) -> Environment | None:
    """Return the environment of a study that was extended: by a QEMU, or by tests that boot a guest.

    :return: None where nothing is new.
    """
    known = {q.label for q in earlier.qemus}
    more = [q for q in now.qemus if q.label not in known]
    guest = earlier.guest or now.guest
    if not more and guest == earlier.guest:
        return None
    # A study that boots a guest now knows the accelerator, which one without did not.
    qemus = {q.label: q for q in (*earlier.qemus, *(now.qemus if earlier.guest is None else more))}
    limits = [*earlier.limits, *(limit for limit in now.limits if limit not in earlier.limits)]
    return earlier.model_copy(update={"qemus": list(qemus.values()), "guest": guest, "limits": limits})


def places_of(chain: ChainDirectory, length: int, scratch: Path) -> list[FilePlace]:
    """Say where the base, the layers and a run's throw-away files lie; layers in one place are told together.

    :param chain: what is measured.
    :param length: of it, in layers.
    :param scratch: directory of throw-away files.
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
