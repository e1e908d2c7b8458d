"""Measures a squash through libvirt against libvirt's own block jobs, under a guest that reads, writes and verifies.

    bench/live/domains.py [--lengths 50,190] [--repeats 3] [--size 1024] [--per-layer 12] [--idle]

For each length the same chain is made three times, and made short by `chainlift squash --libvirt`, by `virsh blockpull`
(all into the active layer) and by `virsh blockcommit` (all between into the base: no snapshot is left). The guest is
Debian's kernel with fio: 4 KiB requests at random, seven of ten are reads, what it wrote is read again and verified; it
notes the longest. A libvirtd of the bench's own is used; as root it is nobody's. Prints a JSON line a run, and a table.
One run, ratios count: the guest is emulated where there is no KVM, and waits for the processor as everybody does;
"quiet" is what it waits by itself, and bench/live/waits.py tells that from what a lift adds. "cpu_s" is what the
command's processes, libvirtd and QEMU without the guest's processor have used meanwhile; with --idle, where the guest
does nothing, that is the command's work, and hardly depends on who else wants the processor.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import pwd
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chainlift.guest.micro import MicroGuest
from chainlift.qcow2.writer import write_image

if TYPE_CHECKING:
    from collections.abc import Iterator

CLUSTER = 65536
#: libvirt 10.8 to 11.10 starts no domain on more: the rest comes as snapshots while it runs.
STARTS_WITH = 20
HOMES = {"XDG_RUNTIME_DIR": "run", "XDG_CONFIG_HOME": "config", "XDG_CACHE_HOME": "cache"}
DOMAIN = """
<domain type='{kind}'><name>bench</name><memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type>
<kernel>{kernel}</kernel><initrd>{initrd}</initrd><cmdline>console=ttyS0 quiet</cmdline></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<controller type='scsi' model='virtio-scsi'/>
<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none' discard='unmap'/>
<source file='{image}'/><target dev='sda' bus='scsi'/></disk>
<serial type='file'><source path='{console}'/></serial>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel></devices></domain>
"""
FIO = (
    "fio --name=work --filename=/dev/sda --direct=1 --ioengine=psync --bs=4k --rw=randrw --rwmixread=70 --norandommap"
    " --randseed={seed} --verify=crc32c --verify_backlog=32 --verify_fatal=1 --time_based --runtime={seconds}"
    " --output-format=json --output=/tmp/{name}"
)
READS = (
    "fio --name=reads --filename=/dev/sda --direct=1 --ioengine=psync --bs=4k --rw=randread --norandommap --time_based"
    " --runtime=4 --output-format=json"
)


def virsh(*words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["virsh", "-q", *map(str, words)], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    if check and done.returncode != 0:
        sys.exit(f"virsh {words[0]}: {done.stderr.strip()}")
    return done


@contextmanager
def libvirtd(parent: Path | None) -> Iterator[Path]:
    """Run a libvirtd of our own; LIBVIRT_DEFAULT_URI names it."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=parent)))
        for name in (*HOMES.values(), "config/libvirt", "images"):
            (place / name).mkdir()
        (place / "config/libvirt/qemu.conf").write_text('security_driver = "none"\nstdio_handler = "file"\n')
        environment = {**os.environ, "HOME": str(place), **{key: str(place / name) for key, name in HOMES.items()}}
        command = ["libvirtd"]
        if os.getuid() == 0:
            command = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--", *command]
        give_away(place)
        os.environ["LIBVIRT_DEFAULT_URI"] = f"qemu+unix:///session?socket={place / 'run/libvirt/libvirt-sock'}"
        log = stack.enter_context((place / "log").open("w"))
        daemon = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        stack.callback(daemon.wait)
        stack.callback(daemon.terminate)
        stack.callback(virsh, "destroy", "bench", check=False)
        while virsh("list", check=False).returncode != 0:
            if daemon.poll() is not None:
                sys.exit(f"libvirtd does not run: {(place / 'log').read_text()[-300:]}")
            time.sleep(0.1)
        yield place


def give_away(directory: Path) -> None:
    if os.getuid() == 0:
        nobody = pwd.getpwnam("nobody")
        for path in (directory, *directory.rglob("*")):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)


def build(directory: Path, length: int, size: int, per_layer: int) -> list[Path]:
    """Make a chain of so many layers over a base that is a quarter full; the active layer is empty."""
    directory.mkdir()
    rng = np.random.default_rng(length)
    files: list[Path] = []
    for layer in range(length + 1):
        count = size // CLUSTER // 4 if layer == 0 else 0 if layer == length else per_layer
        files.append(directory / f"layer{layer:04}.qcow2")
        write_image(
            files[-1], virtual_size=size, backing_file=str(files[-2]) if layer else None,
            backing_format="qcow2" if layer else None,
            clusters=np.sort(rng.choice(size // CLUSTER, count, replace=False)),
            data=lambda cluster, layer=layer: struct.pack("<QQ", layer, cluster) * (CLUSTER // 16),
        )  # fmt: skip
    give_away(directory)
    return files


class Guest:
    """A domain that is up, and its agent."""

    def __init__(self, place: Path, files: list[Path], *, kvm: bool) -> None:
        image = MicroGuest().prepare()
        assert image.kernel is not None
        assert image.initrd is not None
        kernel, initrd = place / "images/kernel", place / "images/initrd"
        for source, copy in ((image.kernel, kernel), (image.initrd, initrd)):
            shutil.copyfile(source, copy)
        give_away(place / "images")
        first = min(len(files) - 1, STARTS_WITH)
        text = DOMAIN.format(
            kind="kvm" if kvm else "qemu", memory=image.memory_bytes >> 20, kernel=kernel, initrd=initrd,
            image=files[first], console=place / "images/console",
        )  # fmt: skip
        xml = place / "bench.xml"
        xml.write_text(text)
        virsh("define", xml)
        virsh("start", "bench")
        deadline = time.monotonic() + 300
        while virsh("qemu-agent-command", "bench", '{"execute":"guest-ping"}', check=False).returncode != 0:
            if time.monotonic() > deadline:
                sys.exit(f"the guest does not come up: {(place / 'images/console').read_text()[-500:]}")
            time.sleep(0.2)
        for file in files[first + 1 :]:
            spec = f"sda,file={file}"
            words = ("--disk-only", "--no-metadata", "--reuse-external", "--diskspec", spec)
            virsh("snapshot-create-as", "bench", file.stem, *words)
        self.pid = int(next((place / "run/libvirt/qemu/run").glob("bench.pid")).read_text())

    def close(self) -> None:
        virsh("destroy", "bench", check=False)
        virsh("undefine", "bench", check=False)

    def ask(self, command: str, **arguments: object) -> Any:  # noqa: ANN401 - whatever the agent answers
        said = virsh("qemu-agent-command", "bench", json.dumps({"execute": command, "arguments": arguments}))
        return json.loads(said.stdout)["return"]

    def begin(self, command: str) -> int:
        pid: int = self.ask("guest-exec", path="/bin/sh", arg=["-c", command], **{"capture-output": True})["pid"]
        return pid

    def end(self, pid: int) -> str:
        while not (status := self.ask("guest-exec-status", pid=pid))["exited"]:
            time.sleep(0.1)
        text = base64.b64decode(status.get("out-data", "")).decode()
        if status.get("exitcode") != 0:
            sys.exit(
                f"fio failed in the guest: {text[-500:]} {base64.b64decode(status.get('err-data', '')).decode()[-500:]}"
            )
        return text

    def run(self, command: str) -> str:
        return self.end(self.begin(command))

    def reads_per_s(self) -> float:
        iops: float = json.loads(self.run(READS))["jobs"][0]["read"]["iops"]
        return iops

    def resident_bytes(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def used_s(guest: Guest, place: Path) -> float:
    """Processor time until now of what has ended here, of libvirtd, and of QEMU without the guest's processor."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = children.ru_utime + children.ru_stime
    # The pidfile is the daemon's own, of a session's too.
    for pid in (int((place / "run/libvirt/libvirtd.pid").read_text()), guest.pid):
        total += process_s(Path(f"/proc/{pid}"))
    for task in Path(f"/proc/{guest.pid}/task").iterdir():
        if (task / "comm").read_text().startswith("CPU "):
            total -= process_s(task)
    return total


def process_s(entry: Path) -> float:
    fields = (entry / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def longest_ms(text: str) -> float:
    """Return the longest request of a run of fio, which has verified what it read."""
    job = json.loads(text[text.index("{") :])["jobs"][0]  # before it stands that it was ended
    if job["error"]:
        sys.exit(f"fio in the guest: error {job['error']}")
    return max(float(job[way]["lat_ns"]["max"]) for way in ("read", "write")) / 1e6


def by_squash(_: list[Path]) -> str | None:
    command = [sys.executable, "-m", "chainlift", "squash", "--libvirt", "bench", "--device", "sda"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr.strip().splitlines()[-1] if done.returncode else None


def by_pull(_: list[Path]) -> str | None:
    done = virsh("blockpull", "bench", "sda", "--wait", check=False)
    return done.stderr.strip().splitlines()[-1] if done.returncode else None


def by_commit(files: list[Path]) -> str | None:
    done = virsh("blockcommit", "bench", "sda", "--top", files[-2], "--base", files[0], "--wait", check=False)
    return done.stderr.strip().splitlines()[-1] if done.returncode else None


WAYS = {"chainlift squash": by_squash, "virsh blockpull": by_pull, "virsh blockcommit": by_commit}


def measure(place: Path, way: str, length: int, arguments: argparse.Namespace) -> dict[str, Any]:
    directory = place / "images/chain"
    files = build(directory, length, arguments.size << 20, arguments.per_layer)
    guest = Guest(place, files, kvm=arguments.kvm)
    try:
        result: dict[str, Any] = {"way": way, "length": length, "reads_per_s_before": guest.reads_per_s()}
        quiet = FIO.format(seed=1, seconds=5, name="quiet") + " && cat /tmp/quiet"
        result["quiet_longest_ms"] = longest_ms(guest.run(quiet))
        result["rss_before_bytes"] = guest.resident_bytes()
        # Ended by us: whatever it takes, fio works through all of it.
        work = None
        if not arguments.idle:
            work = guest.begin(FIO.format(seed=2, seconds=3600, name="work") + "; cat /tmp/work")
            time.sleep(2)
        began, used = time.monotonic(), used_s(guest, place)
        result["refused"] = WAYS[way](files)
        result["took_s"], result["cpu_s"] = time.monotonic() - began, used_s(guest, place) - used
        if work is not None:
            guest.run("killall -INT fio; true")  # one of its processes may end before it is told to
            result["longest_ms"] = longest_ms(guest.end(work))
        result["reads_per_s_after"] = guest.reads_per_s()
        result["rss_after_bytes"] = guest.resident_bytes()
        text = virsh("dumpxml", "bench").stdout
        result["layers_after"] = text.partition("<disk ")[2].partition("</disk>")[0].count("<source ") - 1
        return result
    finally:
        guest.close()
        shutil.rmtree(directory)


def options_of_chains(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that says which chains are made, and where."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="50,190", type=lambda text: [int(word) for word in text.split(",")])
    parser.add_argument("--size", type=int, default=1024, help="of the disk, in MiB")
    parser.add_argument("--per-layer", type=int, default=12, help="clusters of 64 KiB")
    parser.add_argument("--directory", type=Path)
    return parser


def main() -> None:
    parser = options_of_chains(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--idle", action="store_true", help="the guest does nothing meanwhile")
    parser.add_argument("--kvm", action="store_true")
    arguments = parser.parse_args()
    runs = []
    with libvirtd(arguments.directory) as place:
        sys.stdout.write(virsh("version").stdout)
        for length in arguments.lengths:
            for _ in range(arguments.repeats):
                for way in WAYS:
                    runs.append(measure(place, way, length, arguments))
                    sys.stdout.write(json.dumps(runs[-1]) + "\n")
                    sys.stdout.flush()
    names = ("took_s", "cpu_s", "longest_ms", "quiet_longest_ms", "reads_per_s_before", "reads_per_s_after")
    for length in arguments.lengths:
        for way in WAYS:
            mine = [run for run in runs if (run["way"], run["length"]) == (way, length)]
            sys.stdout.write(f"\n{way}, {length} layers to {mine[0]['layers_after']}: median (most)\n")
            if mine[0]["refused"]:
                sys.stdout.write(f"  refused: {mine[0]['refused']}\n")
                continue
            for name in names:
                values = [run[name] for run in mine if name in run] or [math.nan]
                sys.stdout.write(f"  {name:<20} {statistics.median(values):10.2f} ({max(values):.2f})\n")
            for name in ("rss_before_bytes", "rss_after_bytes"):
                sys.stdout.write(f"  {name:<20} {statistics.median(run[name] for run in mine) / 1e6:10.0f} MB\n")


if __name__ == "__main__":
    main()
