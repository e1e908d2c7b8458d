"""A world whose images are disks of libvirt's domains, and what is known of each domain."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from tests.neighbours.world import World, names_a_lift, pointer

from chainlift.qemu.nbd import NbdClient

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator

    from tests.neighbours.reader import Reader
    from tests.support.libvirt import Answer, Libvirtd, Virsh
    from tests.support.verbs import Verbs

HEAD = """#!/usr/bin/env bash
# Every step of a run. A libvirtd of a user's own runs as {user}, and LIBVIRT_DEFAULT_URI names it; steps that are no
# verb of ours and no virsh are that user's: become it with {become}.
export LIBVIRT_DEFAULT_URI='{uri}'
rm -rf {root}; mkdir -p {root}; cd {root}
"""
DEFINITION = """<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{image}'/>{backing}
<target dev='vda' bus='virtio'/></disk></devices></domain>"""
STORE = "<backingStore type='file'><format type='{format}'/><source file='{path}'/>{backing}</backingStore>"
#: A block job or a backup of this little takes no longer.
_JOB_S = 60
_DEVICE = "/machine/peripheral/virtio-disk0/virtio-backend"


class Domain:
    """A domain with one disk; it stands still, and what its guest writes is flushed."""

    def __init__(self, name: str, image: Path, virsh: Virsh, place: Path) -> None:
        self.name = name
        #: The disk's active layer.
        self.image = image
        #: What its guest must read, running or at the next start; None before the first.
        self.expected: bytearray | None = None
        #: A layer that it shares with another domain was written to since it was shut off.
        self.may_read_other_bytes = False
        #: What the guest read at each checkpoint; None where the checkpoint's bitmaps were dropped or are not whole.
        self.checkpoints: dict[str, bytes | None] = {}
        self.snapshots: list[str] = []
        self.is_defined = False
        #: Whether somebody has defined it over an index, on which libvirt starts no domain.
        self.is_over_index = False
        #: The next start goes on where a managed save has stopped.
        self.is_saved = False
        #: A verb of ours has changed the graph since the start: libvirt does not know its own nodes any more.
        self.is_lifted_live = False
        #: It was killed while it had checkpoints: QEMU calls their bitmaps inconsistent ever after.
        self.was_killed = False
        #: A verb of ours has changed something since the definition.
        self.is_touched = False
        self._virsh = virsh
        self._socket = place / "run" / f"{name}.nbd"
        self._log = place / "cache/libvirt/qemu/log" / f"{name}.log"

    def __repr__(self) -> str:
        return self.name

    @property
    def is_alive(self) -> bool:
        return self._virsh("domstate", self.name).text in ("paused", "running")

    def said(self) -> str:
        """The end of QEMU's log."""
        return self._log.read_text(errors="replace")[-2000:] if self._log.exists() else ""

    def execute(self, command: str, **arguments: object) -> Any:
        """Run a command of QEMU's; ``_`` in a name stands for ``-``."""
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        request = {"execute": command, "arguments": named}
        said = self._virsh("qemu-monitor-command", self.name, "--cmd", json.dumps(request))
        assert said, said.error
        answer = json.loads(said.text)
        assert "return" in answer, f"{command}: {answer}"
        return answer["return"]

    def begin(self) -> None:
        """Get ready to be read, after a start."""
        self._socket.unlink(missing_ok=True)
        address = {"type": "unix", "data": {"path": str(self._socket)}}
        self.execute("nbd-server-start", addr=address, max_connections=0)
        self.is_lifted_live = False
        self.look_again()

    def look_again(self) -> None:
        """Find the active layer, which snapshots and block jobs change."""
        name = self._inserted()["file"]
        # QEMU names a node so whose backing file it takes for another than the header's: a relative name is enough.
        self.image = Path(json.loads(name[5:])["file"]["filename"] if name.startswith("json:") else name)

    def _inserted(self) -> dict[str, Any]:
        found: dict[str, Any] = next(
            each["inserted"] for each in self.execute("query-block") if "virtio-disk0" in each.get("qdev", "")
        )
        return found

    def read(self) -> bytes:
        """Return what the guest reads."""
        with self._client() as client:
            client.flush()
            return client.read(0, client.size_bytes)

    @contextmanager
    def _client(self) -> Iterator[NbdClient]:
        node = self._inserted()["node-name"]
        self.execute("block-export-add", type="nbd", id="look", node_name=node, name="disk")
        try:
            with NbdClient(self._socket, "disk") as client:
                yield client
        finally:
            self.execute("block-export-del", id="look", mode="hard")
            while self.execute("query-block-exports"):
                time.sleep(0.001)

    def write(self, pattern: int, offset: int, length: int) -> None:
        """Write and flush as the guest does."""
        assert self.expected is not None
        self.expected[offset : offset + length] = bytes([pattern]) * length
        for line in (f"write -P {pattern} {offset} {length}", "flush"):
            self._virsh("qemu-monitor-command", self.name, "--hmp", f'qemu-io -d {_DEVICE} "{line}"')

    def layers(self) -> list[Path]:
        """Return the chain as the running domain's definition has it, the active layer first."""
        found, disk = [], ET.fromstring(self._virsh("dumpxml", self.name).text).find("devices/disk")
        while disk is not None and (source := disk.find("source")) is not None:
            found.append(Path(source.get("file", "")))
            disk = disk.find("backingStore")
        return found

    def definition(self) -> tuple[Path, list[str] | None]:
        """Return the image of the definition, and what it stands on; None where that is left to the headers."""
        disk = ET.fromstring(self._virsh("dumpxml", "--inactive", self.name).text).find("devices/disk")
        assert disk is not None
        image = Path(disk.find("source").get("file"))
        if disk.find("backingStore") is None:
            return image, None
        named: list[str] = []
        while (disk := disk.find("backingStore")) is not None and (source := disk.find("source")) is not None:
            named.append(source.get("file", ""))
        return image, named


class LibvirtWorld(World):
    """Images of a libvirtd's domains."""

    def __init__(self, daemon: Libvirtd, virsh: Virsh, reader: Reader, verbs: Verbs, counts: Counter[str]) -> None:
        super().__init__(daemon.path / "images/w", reader, verbs, counts)
        self.daemon = daemon
        self.as_user = daemon.as_user
        owner = daemon.path.stat()
        os.chown(self.root, owner.st_uid, owner.st_gid)
        self.domains: list[Domain] = []
        #: A verb of ours was made to lift what libvirt does not start any more.
        self.is_forced = False
        self._virsh = virsh

    def tell(self) -> str:
        become = " ".join(self.as_user) or "nothing"
        head = HEAD.format(root=self.root, uri=self.daemon.uri, user=self.daemon.path.owner(), become=become)
        return head + "\n".join(self.script).replace(f"{self.root}/", "") + "\n"

    def add(self, name: str, image: Path) -> Domain:
        domain = Domain(name, image, self._virsh, self.daemon.path)
        self.domains.append(domain)
        return domain

    def virsh(self, *arguments: object) -> Answer:
        """Do what other people do through libvirt; whether it worked is their business."""
        words = " ".join("'" + str(word) + "'" if " " in str(word) else str(word) for word in arguments)
        said = self._virsh(*arguments)
        self.script.append(f"virsh {words}" + ("" if said else f"  # failed: {said.error[:200]}"))
        return said

    def virsh_with(self, text: str, *arguments: object) -> Answer:
        """Do the same with a text in a file, which is the last argument."""
        return self.virsh(*arguments, self.write("some.xml", text))

    def write(self, name: str, text: str) -> Path:
        """Write a file that is none of the images' directory."""
        path = self.daemon.path / name
        path.write_text(text)
        self.script.append(f"cat > {path} <<'X'\n{text}\nX")
        return path

    def kill(self, domain: Domain) -> None:
        """Kill its QEMU, and wait until libvirt knows."""
        pid = int((self.daemon.path / "run/libvirt/qemu/run" / f"{domain.name}.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        self.script.append(f"kill -9 $(cat {self.daemon.path}/run/libvirt/qemu/run/{domain.name}.pid)")
        while domain.is_alive:
            time.sleep(0.01)

    def restart(self) -> None:
        """Restart libvirtd under the domains."""
        ran = [domain for domain in self.domains if domain.is_alive]
        self._virsh.close()
        self.daemon.stop()
        self.daemon.start()
        for domain in ran:
            self._virsh("iothreadinfo", domain.name)  # which waits until libvirtd has looked at the domain
        ended = [domain.name for domain in ran if not domain.is_alive]
        assert not ended, f"{ended} ended: {self.daemon.complaints}\n{self.tell()}"

    def chain(self, image: Path) -> list[str]:
        """Return what the headers name below an image: absolute where it is a plain name, as it is where it is not."""
        found: list[str] = []
        while image.exists() and len(found) < 50:
            with image.open("rb") as file:
                name = pointer(head) if (head := file.read(1 << 16))[:4] == b"QFI\xfb" else None
            if name is None:
                break
            image = Path(os.path.normpath(image.parent / name))
            found.append(name if name.startswith("json:") else str(image))
        return found

    def indexes(self) -> set[str]:
        """Return the images whose header names an index."""
        named = {str(image): self.chain(image)[:1] for image in self.images()}
        return {image for image, below in named.items() if below and names_a_lift(below[0]) and ".vmdk" in below[0]}

    def wait_for_backup(self, domain: Domain) -> str:
        """Wait for its end; return why it failed, or nothing."""
        end = time.monotonic() + _JOB_S
        while "None" not in self._virsh("domjobinfo", domain.name).text.split("\n")[0]:
            assert time.monotonic() < end, f"a backup does not end\n{self.tell()}"
            time.sleep(0.01)
        said = self._virsh("domjobinfo", domain.name, "--completed", "--anystats").text
        return "" if "Completed" in said.split("\n")[0] else said

    def close(self) -> None:
        for domain in self.domains:
            self._virsh("destroy", domain.name)
            self._virsh("undefine", domain.name, "--snapshots-metadata", "--checkpoints-metadata", "--managed-save")
        self.running.clear()
        super().close()
