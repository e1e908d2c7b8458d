"""libvirt's block copy of one disk: begun, waited for, ended by a pivot or undone, and looked at whatever happened."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chainlift import facts
from chainlift.errors import OperationError, QemuError, UnknownStateError
from chainlift.host import interrupts
from chainlift.host.filesystem import is_same_file
from chainlift.host.virsh import LibvirtAwayError, Virsh
from chainlift.lift.neighbours.domain_xml import DiskDefinition, read_disks

if TYPE_CHECKING:
    from pathlib import Path

_FIRST_LOOK_S: Final = 0.01
_LAST_LOOK_S: Final = 0.1
#: Ending a copy waits for requests of the guest that are under way.
_END_S: Final = 600.0
#: How long a job may be on its way out before it is not known what becomes of it.
_SETTLE_S: Final = 120.0
_PROGRESS: Final = re.compile(r"\b(cur|end)=(\d+)")


@dataclass
class BlockCopy:
    """A copy of a disk's active layer into an overlay.

    :param target: the disk's (``vda``).
    :param overlay: the new file.
    """

    virsh: Virsh
    target: str
    overlay: Path
    #: Whether libvirt was told to pivot: from then on the overlay may be the disk.
    was_told: bool = False

    def start(self, text: str, *, rate_bytes_per_s: int | None) -> None:
        """Have libvirt begin; the guest's writes wait until both files have them, where libvirt can do that.

        :param text: what it is told of the overlay and all below it, see :func:`.domain_xml.copy_text`.
        :raise QemuError: in libvirt's words.
        """
        words = ["--xml", "/dev/stdin", "--shallow", "--transient-job"]
        words += ["--synchronous-writes"] if facts.SYNCHRONOUS.holds(self.virsh.daemon_version) else []
        words += ["--bytes", "--bandwidth", str(rate_bytes_per_s)] if rate_bytes_per_s else []
        self.virsh.tell("blockcopy", self.target, *words, text=text, timeout_s=_END_S)

    def wait(self) -> None:
        """Wait until the overlay has everything.

        :raise OperationError: if the copy has ended by itself: QEMU could not write, or the domain is gone.
        """
        pause_s = _FIRST_LOOK_S
        while True:
            interrupts.between_steps()
            found = dict(_PROGRESS.findall(self.virsh.ask("blockjob", self.target, "--raw")))
            if not found or found["cur"] == found["end"]:
                disk = read_disk(self.virsh, self.target)
                mirror = None if disk is None else disk.mirror
                if mirror is None or not self._is_ours(mirror.path):
                    raise OperationError(
                        "libvirt's copy has ended before it was complete",
                        path=self.overlay,
                        hint=f"see the domain's log and virsh domblkerror {self.virsh.domain.name}",
                    )
                if mirror.ready == "yes":
                    return
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LAST_LOOK_S)

    def pivot(self) -> None:
        """Make the overlay the disk.

        :raise QemuError: if libvirt says that it did not, or does not answer.
        """
        self.was_told = True
        try:
            self.virsh.tell("blockjob", self.target, "--pivot", timeout_s=_END_S)
        except QemuError as error:
            # libvirt looks before it tells QEMU anything (virDomainObjCheckActive()).
            self.was_told = "is not running" not in error.what
            raise

    def settle(self) -> bool:
        """End the job, if it is there, however it stands; return whether the overlay is the disk now.

        :raise UnknownStateError: if that cannot be told.
        """
        deadline = time.monotonic() + _SETTLE_S
        pause_s = _FIRST_LOOK_S
        try:
            while time.monotonic() < deadline:
                disk = read_disk(self.virsh, self.target)
                if disk is None:
                    return self._is_defined()
                if disk.path is not None and is_same_file(disk.path, self.overlay):
                    return True
                if disk.mirror is None or not self._is_ours(disk.mirror.path):
                    return False
                if disk.mirror.ready not in ("pivot", "abort"):
                    with suppress(QemuError):
                        self.virsh.tell("blockjob", self.target, "--abort", timeout_s=_END_S)
                time.sleep(pause_s)
                pause_s = min(pause_s * 1.5, _LAST_LOOK_S)
        except LibvirtAwayError as error:
            raise self._unknown(error.what) from error
        raise self._unknown("libvirt does not end its job")

    def _is_defined(self) -> bool:
        """Whether a domain that does not run any more will start with the overlay."""
        disk = read_disk(self.virsh, self.target, inactive=True)
        if disk is not None and disk.path is not None and is_same_file(disk.path, self.overlay):
            return True
        if self.was_told:
            raise UnknownStateError(
                f"the domain ended while libvirt switched its disk {self.target}",
                path=self.overlay,
                hint="the domain's definition names the image from before, which this one replaces if the guest has "
                "written to it in the last moment; neither was removed",
            )
        return False

    def _is_ours(self, path: str | None) -> bool:
        return path is not None and path == str(self.overlay)

    def _unknown(self, why: str) -> UnknownStateError:
        return UnknownStateError(
            f"it is not known whether libvirt has switched the disk {self.target}: {why}",
            path=self.overlay,
            hint=f"virsh domblklist {self.virsh.domain.name} says so; both sides read the same, nothing was removed; "
            f"chainlift clean --libvirt {self.virsh.domain.name} puts it in order",
        )


def read_disk(virsh: Virsh, target: str, *, inactive: bool = False) -> DiskDefinition | None:
    """Return a disk of a running domain; None where the domain does not run, or has no such disk.

    :param inactive: of the definition that the next start takes; None where there is none.
    :raise LibvirtAwayError: if libvirt does not answer.
    """
    try:
        if not inactive and not virsh.is_running():
            return None
        text = virsh.ask("dumpxml", *(["--inactive"] if inactive else []))
    except LibvirtAwayError:
        raise
    except QemuError:  # a transient domain is gone with its process
        return None
    return next((disk for disk in read_disks(text) if disk.target == target), None)
