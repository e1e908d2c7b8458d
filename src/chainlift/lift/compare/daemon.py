"""Stock QEMU as a reader: a storage daemon of our own that opens what backing names lead to, for reading only.

What an image would stand on is opened as QEMU opens it when it opens the image: an empty image of ours has the name and
the format in its header, and QEMU follows them. What a name means (protocols, ``json:``, a format that nobody says) is
then QEMU's decision and not ours. The image itself is not opened, and layers may be in use by whoever only reads them.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final, Self

from chainlift import facts
from chainlift.errors import QemuCrashed, QemuError
from chainlift.host import interrupts
from chainlift.host.scratch import ScratchDirectory
from chainlift.lift.target import backing_target
from chainlift.qcow2.layout import MAX_BACKING_NAME
from chainlift.qcow2.writer import write_image
from chainlift.qemu.monitor import Monitor
from chainlift.qemu.nbd import NbdClient, export_node
from chainlift.qemu.process import QemuProcess

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    from chainlift.lift.record.manifest import Pointer
    from chainlift.qemu.binary import Qemu

#: 5.2 opens 300 layers in 9 s, and 11.1 opens 1,000 in 33 s; a busy host takes several times as long.
_OPEN_TIMEOUT_S: Final = 900.0
_QUIT_S: Final = 60.0
_REPEATED: Final = re.compile("(?:Could not open backing file: )+")


class ReadingDaemon:
    """A storage daemon that opens backing names and serves them over NBD; a context manager.

    :param qemu: whose daemon it is.
    :param socket: where it listens; None: in a directory of its own. QEMU removes what has the name.
    :raise MissingToolError: if that QEMU has none.
    """

    def __init__(self, qemu: Qemu, *, socket: Path | None = None) -> None:
        self._qemu = qemu
        self._socket = socket
        self._stack = ExitStack()
        #: Nodes that are served.
        self._served: set[str] = set()

    def __enter__(self) -> Self:
        with interrupts.put_off(), ExitStack() as stack:
            #: A directory that goes with the daemon, however that ends; it may hold files, but no directories.
            self.place = stack.enter_context(ScratchDirectory())
            qmp, self._nbd = self.place / "qmp", self._socket or self.place / "nbd"
            argv = self._qemu.command(
                "storage-daemon",
                *("--chardev", f"socket,id=qmp,path={qmp},server=on,wait=off", "--monitor", "chardev=qmp"),
                *("--nbd-server", f"addr.type=unix,addr.path={str(self._nbd).replace(',', ',,')}"),
            )
            self._process = stack.enter_context(
                QemuProcess(argv, environment=self._qemu.environment, remove=self.place)
            )
            self._monitor = stack.enter_context(Monitor.connect(qmp, self._process))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def pid(self) -> int:
        """The daemon's process."""
        return self._process.pid

    def open(self, name: str, image: Path, pointer: Pointer, size_bytes: int) -> None:
        """Open what an image reads, or would read, through a backing name, as a node of this name.

        :param image: a relative backing name is relative to its directory; it is not opened itself.
        :param size_bytes: of the disk; what lies under it may be shorter, and is then followed by zeros.
        :raise QemuError: with QEMU's words if it does not open.
        """
        overlay = self.place / f"{name}.qcow2"
        backing = _header_name(image, pointer)
        fits = len(os.fsencode(backing)) <= MAX_BACKING_NAME
        write_image(
            overlay,
            virtual_size=-(-size_bytes // 512) * 512,
            backing_file=backing if fits else None,
            backing_format=pointer.format if fits else None,
        )
        node: dict[str, object] = {
            "driver": "qcow2",
            "node-name": name,
            "read-only": True,
            "file": {"driver": "file", "read-only": True, "filename": str(overlay)},
        }
        if not fits:  # a relative name of this length is shorter where it belongs
            node["backing"] = backing_target(image, pointer.name, pointer.format).options
        self.add(node)

    def add(self, node: Mapping[str, object]) -> None:
        """Open a node.

        :param node: what ``blockdev-add`` is to be told, for reading only.
        :raise QemuError: with QEMU's words if it does not open.
        """
        try:
            self._monitor.execute("blockdev-add", node, timeout_s=_OPEN_TIMEOUT_S)
        except QemuCrashed:
            raise
        except QemuError as error:
            # Each layer over the one that does not open says so once more.
            raise QemuError(_REPEATED.sub("", error.what.removeprefix("blockdev-add: "))) from error

    def remove(self, name: str) -> None:
        """Close a node that nothing stands on, with what served it; its connections are closed.

        :raise QemuError: if it cannot be closed.
        """
        if name in self._served:
            if facts.EXPORTS.holds(self._qemu.version):
                self._monitor.execute("block-export-del", {"id": name, "mode": "hard"})
                while any(export["id"] == name for export in self._monitor.execute("query-block-exports")):
                    time.sleep(0.001)
            else:
                self._monitor.execute("nbd-server-remove", {"name": name, "mode": "hard"})
            self._served.discard(name)
        self._monitor.execute("blockdev-del", {"node-name": name})

    def connect(self, name: str) -> NbdClient:
        """Return a connection to a node that was opened; the caller closes it.

        :raise QemuError: if it cannot be served.
        """
        self._served.add(name)
        export_node(self._monitor, self._qemu, name)
        return NbdClient(self._nbd, name)

    def serve(self, name: str) -> None:
        """Serve a node that was opened to whoever connects to the socket, as the export without a name.

        :raise QemuError: if it cannot be served.
        """
        # The older command takes an export's name for its identifier, too, and that may not be empty.
        self._monitor.execute("block-export-add", {"type": "nbd", "id": name, "node-name": name, "name": ""})

    def mount(self, name: str, file: Path) -> None:
        """Serve a node that was opened as a raw file, by FUSE.

        :param file: a regular file, which is hidden meanwhile.
        :raise QemuError: if this QEMU cannot, or is not allowed to.
        """
        export = {"type": "fuse", "id": name, "node-name": name, "mountpoint": str(file)}
        self._monitor.execute("block-export-add", export)

    def wait(self) -> None:
        """Wait until the daemon ends by itself.

        :raise QemuError: when it does, with its last words.
        """
        self._process.wait()
        raise self._process.crash_error("serving")

    def quit(self) -> None:
        """Let the daemon close everything and end."""
        with suppress(QemuError):  # it has ended by itself
            self._monitor.execute("quit")
        with suppress(TimeoutError):
            self._process.wait(_QUIT_S)

    def explain(self, error: QemuError) -> QemuError:
        """Return why a connection's request failed: where the daemon has ended, its last words."""
        is_lost = isinstance(error.__cause__, OSError | EOFError)
        return self._process.crash_error("a read") if is_lost else error


def _header_name(image: Path, pointer: Pointer) -> str:
    """Return a backing name that means in any directory what it means in the image's.

    As ``bdrv_make_absolute_filename()`` in block.c: what has a protocol or begins with a slash stays as it is, and is
    relative, if at all, to the working directory, which the daemon shares with us.
    """
    name = pointer.name
    if name.startswith("/") or ":" in name.split("/", maxsplit=1)[0]:
        return name
    # Textually: what ".." leads to depends on symbolic links before it.
    return os.path.join(os.getcwd(), image.parent, name)  # noqa: PTH109, PTH118 - names may hold any byte
