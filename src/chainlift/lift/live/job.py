"""QEMU's ``block-stream`` of one disk, finished so that the disk outlives QEMU.

When the job is done, QEMU writes into the image's header that it has no backing file any more. It has not flushed by
then: tables that say where the copied data lie are in its cache, and a QEMU that is killed in the next seconds leaves
an image that stands alone and reads zeros (seen on 7.2, 10.0 and 11.1). So the job is held before that
(``auto-finalize``), the node is reopened as it is, which flushes it, and only then may the job finish.

The job is asked for rather than waited for, because libvirt passes no events on. It vanishes when it is done: one that
stayed (``auto-dismiss`` off) would hold on to nodes that are half taken apart, and 7.2 then dies of anybody's
``query-named-block-nodes``. So a job that has gone without having been pending has failed.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from chainlift.errors import QemuError
from chainlift.host import interrupts
from chainlift.lift.live.graph import query_edges
from chainlift.qemu.monitor import Monitor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from chainlift.lift.live.qmp import Qmp
    from chainlift.lift.live.steps import ActiveNode

_POLL_S: Final = 0.25
_DONE: Final = object()
#: States of a job that is about to go (qapi/job.json, JobStatus).
_ENDING: Final = ("aborting", "concluded", "null")
_ENDINGS: Final = ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")


class StreamJob:
    """The job that copies everything under a node into it."""

    def __init__(self, monitor: Qmp, active: ActiveNode) -> None:
        self._monitor = monitor
        self._active = active
        self._id = f"{active.prefix}-stream"

    def run(
        self,
        *,
        rate_bytes_per_s: int,
        progress: Callable[[int, int], None] | None,
        meanwhile: Iterator[None] | None = None,
    ) -> int:
        """Run it to its end; return the bytes it went through.

        :param rate_bytes_per_s: 0 for no limit.
        :param meanwhile: work that is done, a step with each element, before the job is finished.
        :raise QemuError: if it fails or somebody cancels it.
        :raise KeyboardInterrupt: if one came before it was finished; the job is cancelled.
        """
        limit = {"speed": rate_bytes_per_s} if rate_bytes_per_s else {}
        request = {"job-id": self._id, "device": self._active.name, "auto-finalize": False}
        try:
            self._monitor.execute("block-stream", {**request, **limit})
            return self._until_done(progress, meanwhile)
        except KeyboardInterrupt:
            self.cancel()
            raise

    def _until_done(self, progress: Callable[[int, int], None] | None, meanwhile: Iterator[None] | None) -> int:
        while (job := self._query()) is not None:
            if job["status"] == "pending":
                for _ in meanwhile or ():
                    pass
                self._finish()
                return int(job["total-progress"])
            if progress is not None:
                progress(job["current-progress"], job["total-progress"])
            if meanwhile is None or next(meanwhile, _DONE) is _DONE:
                time.sleep(_POLL_S)
        raise QemuError(f"the block-stream job failed: {self._reason()}", path=self._active.image)

    def cancel(self) -> None:
        """End the job wherever it is, and wait until it has gone; what it has copied stays copied.

        :raise QemuError: if QEMU does not answer.
        """
        while (job := self._query()) is not None:
            if job["status"] not in _ENDING:
                # Gone meanwhile, it cannot be cancelled; so it is looked at again.
                with suppress(QemuError):
                    self._monitor.execute("job-cancel", {"id": self._id})
            time.sleep(_POLL_S / 10)

    def finish_left(self) -> bool:
        """Finish a job that a killed run has left when all was copied; one that still copies is left alone.

        :return: whether there was one.
        """
        job = self._query()
        if job is None or job["status"] != "pending":
            return False
        self._finish()
        return True

    def _finish(self) -> None:
        self._flush()
        interrupts.between_steps()
        interrupts.too_late()
        self._monitor.execute("job-finalize", {"id": self._id})
        while self._query() is not None:
            time.sleep(_POLL_S / 10)
        if query_edges(self._monitor, self._active.directory).child(self._active.name, "backing") is not None:
            raise QemuError(f"the block-stream job failed at its end: {self._reason()}", path=self._active.image)

    def _reason(self) -> str:
        if isinstance(self._monitor, Monitor):
            for event in self._monitor.events(*_ENDINGS):
                if event.data.get("device") == self._id:
                    return str(event.data.get("error", "somebody cancelled it"))
        return "QEMU does not tell why through libvirt, see the domain's log"

    def _flush(self) -> None:
        """Reopen the active node with what it has: ``bdrv_reopen_prepare()`` (block.c) flushes it."""
        children = query_edges(self._monitor, self._active.directory).children(self._active.name)
        self._monitor.execute("blockdev-reopen", {"options": [{"backing": None, **self._active.options, **children}]})

    def _query(self) -> Mapping[str, Any] | None:
        return next((item for item in self._monitor.execute("query-jobs") if item["id"] == self._id), None)
