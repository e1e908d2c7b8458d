"""Stock QEMU as a reader: a storage daemon of our own that opens what backing names lead to, for reading only.

What an image would stand on is opened as QEMU opens it when it opens the image: an empty image of ours has the name and
the format in its header, and QEMU follows them. What a name means (protocols, ``json:``, a format that nobody says) is
then QEMU's decision and not ours. The image itself is not opened, and layers may be in use by whoever only reads them.
"""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from chainlift.errors import QemuCrashed, QemuError
from chainlift.lift.target import backing_target
from chainlift.qcow2.layout import MAX_BACKING_NAME
from chainlift.qcow2.writer import write_image
from chainlift.qemu.monitor import Monitor
from chainlift.qemu.nbd import NbdClient
from chainlift.qemu.process import QemuProcess

if TYPE_CHECKING:
    from types import TracebackType

    from chainlift.lift.record.manifest import Pointer
    from chainlift.qemu.binary import Qemu

#: 5.2 opens 300 layers in 9 s, and 11.1 opens 1,000 in 33 s; a busy host takes several times as long.
_OPEN_TIMEOUT_S: Final = 900.0
#: ``block-export-add`` came in 5.2 of the system emulator; before 6.0 the older command does everywhere.
_HAS_EXPORTS: Final = (6, 0, 0)
_REPEATED: Final = re.compile("(?:Could not open backing file: )+")


class ReadingDaemon:
    """A storage daemon that opens backing names and serves them over NBD; a context manager.

    :param qemu: whose daemon it is.
    :raise MissingToolError: if that QEMU has none.
    """

    def __init__(self, qemu: Qemu) -> None:
        self._qemu = qemu
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chainlift-")))
            qmp, self._nbd = self._place / "qmp", self._place / "nbd"
            argv = self._qemu.command(
                "storage-daemon",
                *("--chardev", f"socket,id=qmp,path={qmp},server=on,wait=off", "--monitor", "chardev=qmp"),
                *("--nbd-server", f"addr.type=unix,addr.path={self._nbd}"),
            )
            self._process = stack.enter_context(QemuProcess(argv, environment=self._qemu.environment))
            self._monitor = stack.enter_context(Monitor.connect(qmp, self._process))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def open(self, name: str, image: Path, pointer: Pointer, size_bytes: int) -> None:
        """Open what an image reads, or would read, through a backing name, as a node of this name.

        :param image: a relative backing name is relative to its directory; it is not opened itself.
        :param size_bytes: of the disk; what lies under it may be shorter, and is then followed by zeros.
        :raise QemuError: with QEMU's words if it does not open.
        """
        overlay = self._place / f"{name}.qcow2"
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
        try:
            self._monitor.execute("blockdev-add", node, timeout_s=_OPEN_TIMEOUT_S)
        except QemuCrashed:
            raise
        except QemuError as error:
            # Each layer over the one that does not open says so once more.
            raise QemuError(_REPEATED.sub("", error.what.removeprefix("blockdev-add: "))) from error

    def connect(self, name: str) -> NbdClient:
        """Return a connection to a node that was opened; the caller closes it.

        :raise QemuError: if it cannot be served.
        """
        if self._qemu.version >= _HAS_EXPORTS:
            self._monitor.execute("block-export-add", {"type": "nbd", "id": name, "node-name": name, "name": name})
        else:
            self._monitor.execute("nbd-server-add", {"device": name, "name": name})
        return NbdClient(self._nbd, name)

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
