"""Many questions to libvirt, answered by one read-only virsh; no daemon is started for them."""

from __future__ import annotations

import os
import secrets
import subprocess
from typing import TYPE_CHECKING, Final

from chainlift.errors import OperationError

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Commands for one virsh: a shell's arguments have an end.
_BATCH: Final = 200


class VirshBatch:
    """Asks ``virsh`` many questions at once.

    :param uri: None: the connection that virsh takes by itself.
    :param timeout_s: for up to :data:`_BATCH` of them.
    """

    def __init__(self, program: str, uri: str | None, timeout_s: float) -> None:
        #: What it wrote to standard error the last time.
        self.said = ""
        self._program = program
        self._uri = uri
        self._timeout_s = timeout_s

    def ask(self, commands: Sequence[str]) -> list[str]:
        """Run commands of virsh and return what each printed: nothing where it failed."""
        found: list[str] = []
        for start in range(0, len(commands), _BATCH):
            batch = commands[start : start + _BATCH]
            # Between the answers a word that nobody else can have written.
            mark = secrets.token_hex(16)
            text = self._run("; ".join(f"{command}; echo {mark}" for command in batch))
            *answers, _ = text.split(mark)
            if len(answers) < len(batch):
                answers += [""] * (len(batch) - len(answers))
            found += answers
        return found

    def _run(self, commands: str) -> str:
        # LIBVIRT_AUTOSTART: a connection to a session must not start a daemon.
        environment = {**os.environ, "LC_ALL": "C", "LIBVIRT_AUTOSTART": "0"}
        connection = [] if self._uri is None else ["-c", self._uri]
        try:
            done = subprocess.run(
                [self._program, "-q", "--readonly", *connection, commands],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self._timeout_s,
                check=False,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            raise OperationError(f"libvirt did not answer within {self._timeout_s:g} s") from None
        self.said = done.stderr.decode("utf-8", "replace")
        return done.stdout.decode("utf-8", "surrogateescape")
