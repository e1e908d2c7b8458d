"""Serving a snapshot for reading: QEMU's storage daemon over an index of the chain that lives as long as the daemon.

Nothing is written beside the chain, and no image is touched: the index lies in a temporary directory, which goes with
the daemon. The layers may be in use by a running VM, as long as nobody writes to them; while they are served, QEMU's
locks keep everybody from that.
"""

from __future__ import annotations

import os
import socket as sockets
import stat
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from chainlift.chain import ChainPolicy, open_chain
from chainlift.chain.chain import Chain
from chainlift.chain.names import format_reference
from chainlift.errors import ImageError, InputError
from chainlift.lift.build.files import ClusterFiles, files_of
from chainlift.lift.build.index import build_index
from chainlift.lift.build.workspace import create
from chainlift.lift.compare.daemon import ReadingDaemon
from chainlift.lift.compare.stock import MOST_LAYERS
from chainlift.lift.neighbours.locks import LayerLocks
from chainlift.lift.record.liftable import require_liftable
from chainlift.lift.record.manifest import Pointer
from chainlift.qemu.find import find_qemu

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chainlift.chain import Layer
    from chainlift.qemu.binary import Qemu

_DEFAULT_POLICY: Final = ChainPolicy()
#: Chains of up to so many layers are served as they are.
_SHORT: Final = 3
#: The address of a UNIX socket has room for so many bytes, its end included.
_MOST_ADDRESS_BYTES: Final = 107
_NODE: Final = "snapshot"


@dataclass(frozen=True)
class Served:
    """A snapshot that is being served."""

    #: The layer whose content it is.
    path: str
    #: Layers that it consists of.
    layers: int
    #: Of the disk.
    virtual_size_bytes: int
    #: What NBD clients call it; None where it is a file.
    uri: str | None
    #: Why it is no faster than the chain; None where it is as fast as one layer.
    slow: str | None
    _daemon: ReadingDaemon

    def wait(self) -> None:
        """Serve until somebody interrupts.

        :raise QemuError: if the daemon ends by itself.
        """
        self._daemon.wait()


@contextmanager
def export(
    image: str | os.PathLike[str],
    *,
    at: str | os.PathLike[str] | None = None,
    socket: str | os.PathLike[str] | None = None,
    fuse: str | os.PathLike[str] | None = None,
    qemu: Qemu | None = None,
    policy: ChainPolicy = _DEFAULT_POLICY,
) -> Iterator[Served]:
    """Serve what a layer of a chain reads, read-only, while the block lasts. Use it as a context manager.

    The chain stays as it is, and nothing is left of this afterwards. Nobody can write meanwhile to the layers.

    >>> with export("disk.qcow2", at="layer2.qcow2", socket="nbd") as served:
    ...     served.layers, served.uri
    (3, 'nbd+unix:///?socket=...')

    :param image: the active layer, or any other image of a chain.
    :param at: the layer, by its path or its file name; None: the image itself.
    :param socket: a name that is free, where NBD clients connect; ``socket`` or ``fuse``.
    :param fuse: a name that is free; while it is served it is a raw file.
    :param qemu: with a storage daemon, which serves; None: the host's.
    :param policy: where the chain may lead.
    :return: what is served, and under which name.
    :raise InputError: if the layer is none of the chain, a name is taken, or somebody writes to a layer.
    :raise MissingToolError: if there is no QEMU with a storage daemon.
    :raise QemuError: if the daemon cannot serve it.
    """
    if (socket is None) == (fuse is None):
        raise InputError("is served by NBD or as a file, one of the two", path=image, hint="give socket or fuse")
    socket, fuse = (None if name is None else Path(name) for name in (socket, fuse))
    if socket is not None:
        _require_address(socket)
    if fuse is not None:
        _refuse_existing(fuse)
    qemu = qemu or find_qemu(need=["storage-daemon"])
    with open_chain(image, policy) as whole:
        chain = Chain(whole.layers[0 if at is None else whole.find_layer(at) :])
        top = chain.layers[0]
        with ReadingDaemon(qemu, socket=socket) as daemon:
            try:
                pointer, slow = _point_at(chain, daemon)
                daemon.open(_NODE, Path(os.path.abspath(top.path)), pointer, chain.virtual_size)  # noqa: PTH100
                with _at(daemon, socket, fuse) as uri:
                    yield Served(top.path, len(chain.layers), chain.virtual_size, uri, slow, daemon)
            finally:
                daemon.quit()
                if socket is not None:  # QEMU leaves it
                    with suppress(OSError):
                        socket.unlink()


@contextmanager
def _at(daemon: ReadingDaemon, socket: Path | None, fuse: Path | None) -> Iterator[str | None]:
    if socket is not None:
        daemon.serve(_NODE)
        yield f"nbd+unix:///?socket={quote(str(socket.absolute()))}"
        return
    assert fuse is not None
    os.close(create(fuse))
    try:
        daemon.mount(_NODE, fuse.absolute())
        yield None
    finally:
        daemon.quit()
        fuse.unlink()


def _point_at(chain: Chain, daemon: ReadingDaemon) -> tuple[Pointer, str | None]:
    """Return a name by which QEMU reads a chain, and why that is slow, if it is."""
    require_liftable(chain)
    sources = ClusterFiles(chain)
    hint = "serve a snapshot that nobody writes to: --at LAYER, or take a new one first"
    with LayerLocks(files_of(chain, sources), hint=hint) as locks:
        if len(chain.layers) <= _SHORT:
            return _plain(chain.layers[0]), None
        try:
            built = build_index(chain, sources, locks.descriptors, _Scratch(daemon.place))
        except ImageError as error:
            if len(chain.layers) > MOST_LAYERS:
                raise
            return _plain(chain.layers[0]), str(error)
    return Pointer(built.backing_name, "qcow2"), None


def _plain(layer: Layer) -> Pointer:
    path = os.path.abspath(layer.path)  # noqa: PTH100 - links in the name stay, as for QEMU
    form = "raw" if layer.image is None else "qcow2"
    return Pointer(format_reference(replace(layer.reference, path=path, format=form)), form)


class _Scratch:
    """A directory of our own; see :class:`chainlift.lift.build.index.Place`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def claim(self, kind: str) -> str:
        return f"{kind}-1"

    @contextmanager
    def new_file(self, name: str) -> Iterator[int]:
        descriptor = create(self.path / name)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _require_address(socket: Path) -> None:
    """Refuse a name that no socket can have; what a killed run has left there is removed.

    :raise InputError: if it is taken, or too long.
    """
    if len(os.fsencode(socket)) > _MOST_ADDRESS_BYTES:
        raise InputError(f"has more than {_MOST_ADDRESS_BYTES} bytes, too many for a socket", path=socket)
    with suppress(OSError):
        if stat.S_ISSOCK(socket.lstat().st_mode) and _is_dead(socket):
            socket.unlink()
    _refuse_existing(socket)


def _is_dead(socket: Path) -> bool:
    with sockets.socket(sockets.AF_UNIX) as probe:
        try:
            probe.connect(os.fspath(socket))
        except ConnectionRefusedError:
            return True
    return False


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise InputError("exists", path=path, hint="choose another name or remove it")
