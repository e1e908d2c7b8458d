"""QEMU's programs as processes: how they failed or crashed is told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chainlift.errors import QemuCrashed, QemuError
from chainlift.host import process as host_process
from chainlift.host.process import Finished, Process, describe_end, describe_failure, last_lines

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

__all__ = ["Finished", "QemuProcess", "run_tool"]


class QemuProcess(Process):
    """A QEMU that runs: a system emulator or a storage daemon. See :class:`chainlift.host.process.Process`."""

    def crash_error(self, what: str, timeout_s: float = 10.0) -> QemuError:
        """Return the error for a connection to this process that was lost in the middle of ``what``.

        :class:`~chainlift.errors.QemuCrashed` with the signal and the last lines of standard error if the process
        ends within ``timeout_s`` (a core dump takes its time), else a plain ``QemuError``.
        """
        try:
            finished = self.wait(timeout_s)
        except TimeoutError:
            return QemuError(f"QEMU closed the connection during {what} and still runs (process {self.pid})")
        text = f"QEMU ended during {what}: {describe_end(finished.returncode)}"
        if said := last_lines(finished.stderr):
            text += f": {said}"
        return QemuCrashed(text, returncode=finished.returncode)


def run_tool(
    argv: Sequence[str | os.PathLike[str]],
    *,
    timeout_s: float | None = None,
    check: bool = True,
    environment: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    input_bytes: bytes | None = None,
) -> Finished:
    """Run one of QEMU's tools to its end; parameters as :func:`chainlift.host.process.run_tool`.

    :raise QemuCrashed: if a signal ended it (and ``check``).
    :raise QemuError: if it exits with another status than 0 (and ``check``).
    :raise OperationError: if it is not done after ``timeout_s`` and was killed.
    """
    finished = host_process.run_tool(
        argv, timeout_s=timeout_s, check=False, environment=environment, cwd=cwd, input_bytes=input_bytes
    )
    if check and finished.returncode != 0:
        text = describe_failure(argv, finished)
        if finished.returncode < 0:
            raise QemuCrashed(text, returncode=finished.returncode)
        raise QemuError(text)
    return finished
