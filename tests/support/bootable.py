"""A disk image as a person has one: partitions, a boot loader, a stock Debian with a guest agent and an SSH server."""

import hashlib
import struct
import subprocess
from pathlib import Path

from chainlift.host.apt.sources import os_release, replace_suite
from chainlift.host.cache import cache_dir

PACKAGES = (
    "systemd-sysv,udev,dbus,linux-image-cloud-amd64,initramfs-tools,openssh-server,sudo,qemu-guest-agent,fio,fdisk,"
    "e2fsprogs"
)
MIB = 1 << 20
BOOT_MIB, ROOT_MIB = 128, 1300
APPEND = "root=/dev/sda2 rw console=ttyS0"

HOOK = """\
set -eu
printf '/dev/sda2 / ext4 defaults 0 1\\n' >"$1/etc/fstab"
printf '[Match]\\nName=e*\\n[Network]\\nDHCP=yes\\n' >"$1/etc/systemd/network/all.network"
chroot "$1" systemctl enable systemd-networkd
chroot "$1" useradd -m -s /bin/bash somebody
echo 'somebody ALL=(ALL) NOPASSWD: ALL' >"$1/etc/sudoers.d/somebody"
for home in root home/somebody; do
    mkdir -p -m 700 "$1/$home/.ssh"
    cp "$KEY" "$1/$home/.ssh/authorized_keys"
done
chroot "$1" chown -R somebody: /home/somebody
"""


def make_key():
    """Return a private key that is kept: it is inside the cached system."""
    key = cache_dir("tests") / "key"
    if not key.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    return key


def make_image(path, scratch):
    """Make a raw image of an MBR, a FAT partition that boots by BIOS or UEFI, and an ext4 partition."""
    tree, fat, root = scratch / "tree", scratch / "fat", scratch / "root"
    tree.mkdir()
    subprocess.run(["tar", "-x", "-f", _archive(scratch), "-C", tree, "--exclude=./dev/*"], check=True)
    [kernel], [initrd] = tree.glob("boot/vmlinuz-*"), tree.glob("boot/initrd.img-*")
    (scratch / "syslinux.cfg").write_text(f"DEFAULT x\nLABEL x\n KERNEL /vmlinuz\n INITRD /initrd\n APPEND {APPEND}\n")
    # The kernel is an EFI program; the firmware's shell runs this where it finds no boot loader.
    (scratch / "startup.nsh").write_text(f"fs0:\nvmlinuz initrd=\\initrd {APPEND}\n")
    fat.write_bytes(b"")
    with fat.open("r+b") as file:
        file.truncate(BOOT_MIB * MIB)
    subprocess.run(["mformat", "-i", fat, "-F", "-H", "2048", "::"], check=True)
    files = {"vmlinuz": kernel, "initrd": initrd, "startup.nsh": scratch / "startup.nsh"}
    for name, file in {**files, "syslinux.cfg": scratch / "syslinux.cfg"}.items():
        subprocess.run(["mcopy", "-i", fat, file, f"::{name}"], check=True)
    subprocess.run(["syslinux", "--install", fat], check=True)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, root, f"{ROOT_MIB}M"], check=True)
    with path.open("wb") as disk:
        code = Path("/usr/lib/SYSLINUX/mbr.bin").read_bytes().ljust(440, b"\0")
        entries = _entry(2048, BOOT_MIB * 2048, 0xEF, active=True)
        entries += _entry((BOOT_MIB + 1) * 2048, ROOT_MIB * 2048, 0x83, active=False)
        disk.write(code + bytes(6) + entries.ljust(64, b"\0") + b"\x55\xaa")
        disk.truncate((BOOT_MIB + ROOT_MIB + 1) * MIB)
    for part, at in ((fat, 1), (root, BOOT_MIB + 1)):
        options = ["bs=1M", f"seek={at}", "conv=notrunc,sparse", "status=none"]
        subprocess.run(["dd", f"if={part}", f"of={path}", *options], check=True)
        part.unlink()


def _entry(first, count, kind, *, active):
    return struct.pack("<B3xB3xII", 0x80 if active else 0, kind, first, count)


def _archive(scratch):
    suite = os_release(Path("/etc/os-release"))["VERSION_CODENAME"]
    key = make_key().with_suffix(".pub")
    digest = hashlib.sha256((PACKAGES + HOOK + key.read_text()).encode()).hexdigest()[:16]
    archive = cache_dir("tests") / f"stock-{suite}-{digest}.tar"
    if not archive.exists():
        sources = []
        for name, text in replace_suite(Path("/etc"), [suite]).items():
            (scratch / name).write_text(text)
            sources.append(scratch / name)
        hook = scratch / "hook"
        hook.write_text(f"#!/bin/sh\nKEY={key}\n{HOOK}")
        hook.chmod(0o755)
        options = ["--variant=apt", '--aptopt=APT::Install-Recommends "false"', f"--include={PACKAGES}"]
        made = scratch / "made.tar"
        command = ["mmdebstrap", *options, f"--customize-hook={hook}", suite, made, *sources]
        subprocess.run(command, check=True, capture_output=True)
        subprocess.run(["mv", made, archive], check=True)
    return archive
