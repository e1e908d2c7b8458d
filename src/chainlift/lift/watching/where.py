"""Where a VM is asked: at its QMP socket, or at libvirt."""

from __future__ import annotations

import os
from pathlib import Path

from chainlift.host.virsh import Domain

Where = Path | Domain
_DOMAIN = str(Domain(""))


def where_of(text: str) -> Where:
    """Return what was written down as ``str(where)``."""
    return Domain(text.removeprefix(_DOMAIN)) if text.startswith(_DOMAIN) else Path(text)


def words_of(where: Where, name: str | None) -> list[str]:
    """Return by which words a VM can be paused: its name, and its socket's path and name.

    :param name: of the VM, where it has one.
    """
    named = [] if name is None else [name]
    if isinstance(where, Domain):
        return list(dict.fromkeys([*named, where.name]))
    return [*named, os.path.realpath(where), where.name, where.stem]


def described(where: Where) -> str:
    """Return how it stands in the journal."""
    return str(where) if isinstance(where, Domain) else f"socket {where}"
