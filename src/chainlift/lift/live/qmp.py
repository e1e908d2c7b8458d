"""What the live verbs ask of a monitor: QEMU's own socket, or libvirt's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping


class Qmp(Protocol):
    """Somebody who passes commands on to QEMU. No events: libvirt does not pass them on without losing some."""

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout_s: float | None = None,
        **keywords: object,
    ) -> Any:  # noqa: ANN401 - whatever the command returns
        """See :meth:`chainlift.qemu.monitor.Monitor.execute`."""
