"""How the host reads of a study read files: as the plan says, or by io_uring where that works."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chainlift.errors import OperationError
from chainlift.host.process import last_lines
from chainlift.host.scratch import ScratchDirectory
from chainlift.qemu.process import run_tool

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from chainlift.qemu.binary import Qemu
    from chainlift.study.plan import Plan

#: Page of the host; a read never reaches past the end of a file of whole pages.
_PAGE = 4096


def choose_host_aio(plan: Plan, qemu: Qemu, files: Sequence[Path]) -> tuple[str, str]:
    """Return how a QEMU's host reads read files, and why not by io_uring where that was left to us; else ``""``.

    :param files: the chain's.
    """
    wanted = plan.host_read.aio or plan.aio
    if wanted != "auto":
        return wanted, ""
    # 5.2 and 7.2 hang in a read that reaches past a file's end (luring_resubmit_short_read() in block/io_uring.c).
    odd = next((file for file in files if file.stat().st_size % _PAGE), None)
    if odd is not None:
        return "threads", f"{odd.name} does not end with a whole page"
    with ScratchDirectory() as directory:
        image = directory / "empty.raw"
        image.write_bytes(bytes(_PAGE))
        # As the reads of the study, but for the format.
        bench = ("bench", "-f", "raw", "-i", "io_uring", "-c", "1", "-s", str(_PAGE), str(image))
        try:
            run_tool(qemu.command("img", *bench), environment=qemu.environment)
        except OperationError as error:
            return "threads", last_lines(error.what, 1)
    return "io_uring", ""
