"""A look before the switch: stock QEMU must read through the new node what the chain says.

A storage daemon of our own opens what the running QEMU is about to open, so that its main loop is not burdened and
nobody's disk is at risk. What it reads is compared with our own reading of the chain.
"""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chainlift.errors import AnswerIsNo
from chainlift.lift.record.source import find_source
from chainlift.lift.target import node_options
from chainlift.qemu.monitor import Monitor
from chainlift.qemu.nbd import NbdClient
from chainlift.qemu.process import QemuProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from chainlift.lift.target import Target
    from chainlift.qemu.binary import Qemu

_PIECE_BYTES: Final = 65536
#: How many pieces are compared where not all are asked for.
SAMPLE: Final = 256


def compare_sample(
    qemu: Qemu,
    image: Path,
    target: Target,
    *,
    pieces: int | None = SAMPLE,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Compare pieces of the disk, read through the target by QEMU, with the chain under the image as it was.

    :param pieces: how many of 64 KiB, at random, first and last included; None compares all of them.
    :param progress: called with the bytes compared so far.
    :return: bytes compared.
    :raise AnswerIsNo: naming the first byte that differs.
    :raise QemuError: if the target cannot be opened or read.
    """
    with (
        find_source(image).open_original() as chain,
        tempfile.TemporaryDirectory(prefix="chainlift-") as place,
    ):
        nbd, qmp = Path(place) / "nbd", Path(place) / "qmp"
        node = node_options(target.options, "lift", direct=False, no_flush=True)
        argv = qemu.command(
            "storage-daemon",
            *("--chardev", f"socket,id=qmp,path={qmp},server=on,wait=off", "--monitor", "chardev=qmp"),
            *("--blockdev", json.dumps(node), "--nbd-server", f"addr.type=unix,addr.path={nbd}"),
            *("--export", "type=nbd,id=lift,node-name=lift,name=lift"),
        )
        with (
            QemuProcess(argv, environment=qemu.environment) as process,
            Monitor.connect(qmp, process),  # answers when the disk is open
            NbdClient(nbd, "lift") as client,
        ):
            size = min(chain.virtual_size, client.size_bytes)
            compared = 0
            for offset in _offsets(size, pieces, seed):
                length = min(_PIECE_BYTES, size - offset)
                ours, theirs = chain.read(offset, length), client.read(offset, length)
                if ours != theirs:
                    at = offset + next(i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
                    raise AnswerIsNo(
                        f"the lift reads differently at byte {at} of the disk; nothing was switched",
                        path=image,
                        hint="run chainlift verify --content and report this",
                    )
                compared += length
                if progress is not None:
                    progress(compared)
            return compared


def _offsets(size: int, pieces: int | None, seed: int) -> Iterable[int]:
    count = -(-size // _PIECE_BYTES)
    numbers: Iterable[int] = range(count)
    if pieces is not None and count > pieces:
        chosen = random.Random(seed).sample(range(1, count - 1), pieces - 2)
        numbers = [0, *sorted(chosen), count - 1]
    return (number * _PIECE_BYTES for number in numbers)
