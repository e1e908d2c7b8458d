"""A small NBD client: one connection, and one request at a time but for :meth:`NbdClient.read_into`.

What a lifted disk is compared through, and what a pivot is tested and measured with; several clients are several
connections. Fixed newstyle handshake and simple replies (NetworkBlockDevice/nbd, doc/proto.md).
"""

from __future__ import annotations

import os
import socket
import struct
from itertools import islice
from typing import TYPE_CHECKING, Final

from chainlift import facts
from chainlift.errors import QemuError
from chainlift.host.closing import Closing

if TYPE_CHECKING:
    from collections.abc import Iterable
    from os import PathLike

    from chainlift.qemu.binary import Qemu
    from chainlift.qemu.monitor import Monitor

_INIT: Final = 0x4E42444D41474943
_OPTION: Final = 0x49484156454F5054
_OPTION_REPLY: Final = 0x3E889045565A9
_REQUEST: Final = 0x25609513
_SIMPLE_REPLY: Final = 0x67446698
_FIXED_NEWSTYLE_NO_ZEROES: Final = 3
_OPT_GO: Final = 7
_REP_ACK: Final = 1
_REP_INFO: Final = 3
_INFO_EXPORT: Final = 0
#: QEMU works on 16 at a time for one client (nbd/server.c, MAX_NBD_REQUESTS); from 4 on it is no faster.
_IN_FLIGHT: Final = 8
_READ, _WRITE, _DISCONNECT, _FLUSH, _TRIM, _WRITE_ZEROES = 0, 1, 2, 3, 4, 6


class NbdClient(Closing):
    """A connection to an export on a UNIX socket.

    :param timeout_s: how long an answer may take.
    :raise QemuError: if the server refuses or speaks something else.
    """

    def __init__(self, path: str | PathLike[str], export: str, *, timeout_s: float = 120.0) -> None:
        self._export = export
        self._handle = 0
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(os.fspath(path))
            #: The export's size.
            self.size_bytes = self._negotiate()
        except (OSError, EOFError, struct.error) as error:
            self._socket.close()
            raise QemuError(f"NBD export {export!r}: {error}", path=os.fspath(path)) from error
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """Say goodbye and close the connection."""
        try:
            self._socket.sendall(struct.pack(">IHHQQI", _REQUEST, 0, _DISCONNECT, 0, 0, 0))
        except OSError:
            pass  # the server went first
        finally:
            self._socket.close()

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes.

        :raise QemuError: if the server reports an I/O error or goes away.
        """
        return self._request(_READ, offset, length)

    def read_into(self, parts: Iterable[tuple[memoryview, int]]) -> None:
        """Read as many bytes as each buffer has from the offset beside it; several requests are on their way at once.

        :raise QemuError: as :meth:`read`.
        """
        waiting: dict[int, tuple[memoryview, int]] = {}
        rest = iter(parts)
        try:
            while True:
                for buffer, offset in islice(rest, _IN_FLIGHT - len(waiting)):
                    self._handle += 1
                    waiting[self._handle] = buffer, offset
                    self._socket.sendall(struct.pack(">IHHQQI", _REQUEST, 0, _READ, self._handle, offset, len(buffer)))
                if not waiting:
                    return
                magic, error, handle = struct.unpack(">IIQ", self._receive(16))
                if magic != _SIMPLE_REPLY or handle not in waiting:
                    raise QemuError(f"NBD export {self._export!r}: an answer that was not asked for")
                buffer, offset = waiting.pop(handle)
                if error:
                    raise QemuError(f"NBD export {self._export!r}: {os.strerror(error)} at byte {offset}")
                self._receive_into(buffer)
        except (OSError, EOFError) as lost:
            raise QemuError(f"NBD export {self._export!r}: the connection was lost ({lost})") from lost

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes; errors as :meth:`read`."""
        self._request(_WRITE, offset, len(data), data)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Write zeroes without sending them; errors as :meth:`read`."""
        self._request(_WRITE_ZEROES, offset, length)

    def flush(self) -> None:
        """Make what was written durable; errors as :meth:`read`."""
        self._request(_FLUSH, 0, 0)

    def _negotiate(self) -> int:
        magic, option_magic, _ = struct.unpack(">QQH", self._receive(18))
        if (magic, option_magic) != (_INIT, _OPTION):
            raise QemuError("not an NBD server of the fixed newstyle")
        name = self._export.encode()
        payload = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        head = struct.pack(">IQII", _FIXED_NEWSTYLE_NO_ZEROES, _OPTION, _OPT_GO, len(payload))
        self._socket.sendall(head + payload)
        size: int | None = None
        while True:
            reply_magic, _, kind, length = struct.unpack(">QIII", self._receive(20))
            data = self._receive(length)
            if reply_magic != _OPTION_REPLY or kind & 1 << 31:
                raise QemuError(f"NBD export {self._export!r} is refused: {data.decode(errors='replace')}")
            if kind == _REP_INFO and struct.unpack(">H", data[:2])[0] == _INFO_EXPORT:
                size = struct.unpack(">HQH", data[:12])[1]
            if kind == _REP_ACK:
                break
        if size is None:
            raise QemuError(f"NBD export {self._export!r} does not tell its size")
        return size

    def _request(self, kind: int, offset: int, length: int, data: bytes = b"") -> bytes:
        self._handle += 1
        head = struct.pack(">IHHQQI", _REQUEST, 0, kind, self._handle, offset, length)
        try:
            self._socket.sendall(head + data)
            magic, error, handle = struct.unpack(">IIQ", self._receive(16))
            if magic != _SIMPLE_REPLY or handle != self._handle:
                raise QemuError(f"NBD export {self._export!r}: an answer that was not asked for")
            if error:
                raise QemuError(f"NBD export {self._export!r}: {os.strerror(error)} at byte {offset}")
            return bytes(self._receive(length)) if kind == _READ else b""
        except (OSError, EOFError) as lost:
            raise QemuError(f"NBD export {self._export!r}: the connection was lost ({lost})") from lost

    def _receive(self, count: int) -> bytearray:
        data = bytearray(count)
        with memoryview(data) as view:
            self._receive_into(view)
        return data

    def _receive_into(self, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            count = self._socket.recv_into(buffer[done:])
            if not count:
                raise EOFError("the server closed it")
            done += count


def export_node(monitor: Monitor, qemu: Qemu, node: str) -> None:
    """Have a QEMU whose NBD server runs serve a node for reading, under the node's own name.

    :param monitor: of that QEMU.
    :param qemu: which one it is: releases have other commands for it.
    :param node: by its name.
    :raise QemuError: if it refuses.
    """
    if facts.EXPORTS.holds(qemu.version):
        monitor.execute("block-export-add", {"type": "nbd", "id": node, "node-name": node, "name": node})
    else:
        monitor.execute("nbd-server-add", {"device": node, "name": node})
