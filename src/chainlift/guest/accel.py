"""KVM or TCG: decided by booting a guest, since nothing less tells.

There are machines (virtual ones without nested virtualisation, some sandboxes) where ``/dev/kvm`` opens, a virtual
machine and its CPU are created, and then no kernel ever gets through its boot. So ``auto`` boots the micro guest under
KVM, once for each boot of the host, QEMU and guest kernel; the verdict is kept in the cache with its reason.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from chainlift.errors import ChainliftError, InputError
from chainlift.guest.boot import boot
from chainlift.guest.micro import MicroGuest
from chainlift.host.cache import cache_dir
from chainlift.qemu.machine import Accelerator, Disk
from chainlift.units import format_seconds

if TYPE_CHECKING:
    from chainlift.guest.interface import GuestImage
    from chainlift.qemu.binary import Qemu

_DEVICE = Path("/dev/kvm")
#: A guest under KVM is up in one or two seconds; this leaves room for a busy machine.
DEADLINE_S = 20.0


class Choice(NamedTuple):
    """An accelerator, and one line on why this one."""

    name: Accelerator
    reason: str


def choose_accelerator(wanted: Literal["auto", "kvm", "tcg"], qemu: Qemu, *, deadline_s: float = DEADLINE_S) -> Choice:
    """Choose the accelerator for a QEMU on this host.

    :param wanted: ``auto`` takes KVM where a guest boots under it within ``deadline_s``, else TCG.
    :raise InputError: if ``kvm`` is wanted and does not work here; the text says what happened.
    """
    if wanted == "tcg":
        return Choice("tcg", "asked for")
    failure, success = _verdict(qemu, deadline_s)
    if failure is None:
        return Choice("kvm", success)
    if wanted == "kvm":
        raise InputError(f"KVM does not work here: {failure}", hint="choose auto or tcg")
    return Choice("tcg", f"KVM does not work here: {failure}")


def _verdict(qemu: Qemu, deadline_s: float) -> tuple[str | None, str]:
    """Return why KVM does not work, or None and how it did."""
    if not _DEVICE.exists():
        return "there is no /dev/kvm", ""
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        return "no permission to open /dev/kvm (its group is usually kvm)", ""
    image = MicroGuest(fio=False).prepare()
    kept = _place(qemu, image)
    try:
        verdict = json.loads(kept.read_text())
        return verdict["failure"], verdict["success"]
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        pass
    failure, success = _try_kvm(qemu, deadline_s)
    with tempfile.NamedTemporaryFile("w", dir=kept.parent, delete=False) as scratch:
        json.dump({"failure": failure, "success": success, "qemu": qemu.version_text, "at": time.time()}, scratch)
    Path(scratch.name).rename(kept)
    return failure, success


def _try_kvm(qemu: Qemu, deadline_s: float) -> tuple[str | None, str]:
    """Boot the micro guest under KVM, with a disk of nothing."""
    with tempfile.NamedTemporaryFile() as empty:
        os.truncate(empty.fileno(), 1 << 20)
        disk = Disk(Path(empty.name), format="raw")
        started = time.monotonic()
        try:
            with boot(MicroGuest(fio=False), qemu, disk, accelerator="kvm", deadline_s=deadline_s):
                return None, f"a guest booted under KVM in {format_seconds(time.monotonic() - started)}"
        except ChainliftError as error:
            return error.what, ""


def _place(qemu: Qemu, image: GuestImage) -> Path:
    """Return the file of the verdict for this boot of the host, this QEMU and this guest."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    facts = [boot_id, str(qemu.system), qemu.version_text, str(image.initrd)]
    return cache_dir("accelerator") / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}.json"
