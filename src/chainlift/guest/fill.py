"""Laying down the workload's file by the guest itself.

A guest that lives on its disk knows best how to write a file there, and under emulation it still does so at hundreds of
MB/s: the requests are large and the data are copied by the host.
"""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING

from chainlift.errors import GuestError, InputError
from chainlift.guest.boot import boot
from chainlift.qemu.machine import Disk
from chainlift.units import format_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from chainlift.guest.interface import Guest, GuestKind
    from chainlift.qemu.binary import Qemu
    from chainlift.qemu.machine import Accelerator

_GROW_S = 300.0
#: Slower than any disk that a study would be run on.
_SLOWEST_BYTES_PER_S = 4 << 20

# Argument: a directory. Grows the last partition and its file system to the end of the disk, with what the guest has.
_GROW = """\
source=$(findmnt -no SOURCE -T "$1") type=$(findmnt -no FSTYPE -T "$1") mount=$(findmnt -no TARGET -T "$1")
case $source in
    /dev/sda[0-9]*)
        number=${source#/dev/sda}
        growpart /dev/sda "$number" || {
            sfdisk --force --relocate gpt-bak-std /dev/sda
            echo ',+' | sfdisk --force --no-reread -N "$number" /dev/sda
            partx --update --nr "$number" /dev/sda
        } ;;
esac
case $type in
    ext[234]) resize2fs "$source" ;;
    xfs) xfs_growfs "$mount" ;;
    btrfs) btrfs filesystem resize max "$mount" ;;
esac
"""


def lay_down_data(
    kind: GuestKind, qemu: Qemu, disk: Path, data_bytes: int, *, accelerator: Accelerator, deadline_s: float = 600.0
) -> None:
    """Boot a guest on its base image and write ``fio.0.0`` in its work directory.

    The data are fio's pseudo-random ones: the same in every run, and not compressible.

    :param kind: the guest.
    :param qemu: what boots it.
    :param disk: its base image, which is written to.
    :param data_bytes: size of the file.
    :param accelerator: ``kvm`` or ``tcg``.
    :param deadline_s: seconds until it must have come up.
    :raise InputError: if the guest has no fio, or no room for the file.
    :raise GuestError: if it does not come up or does not finish.
    """
    with boot(kind, qemu, Disk(disk), accelerator=accelerator, deadline_s=deadline_s) as guest:
        require_fio(guest)
        directory = guest.work_directory()
        room = free_bytes(guest, directory)
        if room < data_bytes:
            guest.run(f"sh -c {quote(_GROW)} sh {quote(directory)}", _GROW_S)
            room = free_bytes(guest, directory)
        if room < data_bytes:
            raise InputError(
                f"the guest's {directory} has {format_bytes(room)} free, the workload's file needs "
                f"{format_bytes(data_bytes)}",
                hint="make the file system in the image larger, or chain.workload.size smaller",
            )
        command = (
            f"fio --name=fio --directory={quote(directory)} --rw=write --bs=1M --size={data_bytes} --direct=1 "
            "--ioengine=libaio --iodepth=4 --fallocate=native --end_fsync=1 --output=/dev/null"
        )
        guest.run(command, timeout_s=120 + data_bytes / _SLOWEST_BYTES_PER_S).require()
        size = guest.run(f"sync; stat -c %s {quote(directory)}/fio.0.0").require().stdout.strip()
        if size != str(data_bytes):
            raise GuestError(f"the guest's fio wrote a file of {size} bytes, not {data_bytes}")
        guest.halt()


def free_bytes(guest: Guest, directory: str) -> int:
    """Return how many bytes a guest can write in a directory."""
    fields = guest.run(f"df -Pk {quote(directory)} | tail -n 1").require().stdout.split()
    if len(fields) < 4 or not fields[3].isdigit():
        raise GuestError(f"the guest's df says nothing of {directory}")
    return int(fields[3]) * 1024


def require_fio(guest: Guest) -> str:
    """Return the version of the guest's fio.

    :raise InputError: if it has none.
    """
    answer = guest.run("fio --version")
    if answer.status != 0:
        raise InputError("the guest has no fio", hint="install the package fio in it")
    return answer.stdout.strip()
