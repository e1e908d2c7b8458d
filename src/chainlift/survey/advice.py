"""What to do first about a chain, as a command, and what that gives back."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from chainlift.chain.descriptor import check_name
from chainlift.chain.libvirt_limits import libvirt_limit
from chainlift.cost import predict
from chainlift.errors import ImageError
from chainlift.host.libvirt_version import libvirt_version
from chainlift.lift.neighbours.managers import manager_of
from chainlift.lift.record.liftable import require_liftable
from chainlift.results.survey.records import Advice
from chainlift.survey.foreseen import to_record
from chainlift.survey.words import readable, shell_word
from chainlift.units import counted

if TYPE_CHECKING:
    from chainlift.chain import Chain
    from chainlift.chain.summary import ChainSummary
    from chainlift.cost import Shape
    from chainlift.survey.find import Found
    from chainlift.survey.settings import Settings

#: Layers from which on a chain costs anything.
SHORT_CHAIN: Final = 8
Verb = Literal["index", "squash", "prune"]


def advise(
    found: Found, chain: Chain, summary: ChainSummary, shape: Shape | None, settings: Settings, end: int
) -> Advice | None:
    """Say what to do; None where nothing is worth it.

    Snapshots that no rule keeps go first. What is then still long is lifted: by an index, which copies nothing; by a
    squash, where libvirt has the disk, which starts no domain on an index.

    :param shape: of the chain; None where no costs are predicted.
    :param end: the depth of the first layer that other chains stand on.
    """
    if any(layer.extents for layer in chain.layers):
        return None  # it has its index
    goes = [] if settings.policy is None else settings.policy.goes(chain.layers, end)
    rest = summary.length - len(goes)
    verb: Verb
    if goes and (rest < SHORT_CHAIN or not _is_endangered(found, chain, len(goes))):
        verb, why = "prune", f"no rule keeps {counted(len(goes), 'snapshot')}"
    elif summary.length < SHORT_CHAIN:
        return None
    elif found.uses:
        verb, why = "squash", "libvirt starts no domain on an index"
        goes = []
    elif (cannot := _unnamable(chain)) is not None:
        verb, why, goes = "squash", f"an index cannot be had: {cannot}", []
    else:
        verb, why, goes = "index", "", []
    length = rest if verb == "prune" else min(summary.length, 1 if verb == "index" else 2)
    command, obstacle = _command(verb, found, chain, settings)
    cost = None
    if shape is not None and settings.parameters is not None:
        cost = to_record(predict(shape, settings.parameters, verb, layers=rest))
    return Advice(
        verb=verb,
        command=command,
        why=readable(obstacle or why),
        length=length,
        cost=cost,
        frees_bytes=sum(summary.layers[depth].frees_bytes or 0 for depth in goes),
        snapshots=len(goes),
    )


def _is_endangered(found: Found, chain: Chain, fewer: int) -> bool:
    """Whether a libvirt domain would still have too long a chain without so many layers."""
    version = libvirt_version()
    return (
        bool(found.uses)
        and version is not None
        and (chain.length - fewer > libvirt_limit(version, chain.layers).longest)
    )


def _unnamable(chain: Chain) -> str | None:
    """Return why a descriptor cannot name one of the files that an index would point into."""
    for layer in chain.layers[1:]:
        try:
            check_name(os.path.abspath(layer.path))  # noqa: PTH100 - as it will stand in the descriptor
        except ImageError as error:
            return f"{error.path} {error.what}"
    return None


def _command(verb: Verb, found: Found, chain: Chain, settings: Settings) -> tuple[str, str | None]:
    """Return the command; where there can be none, the empty text and why."""
    if (manager := manager_of(found.path)) is not None:
        return "", f"{manager}: {manager.advice}"
    try:
        require_liftable(chain)
    except ImageError as error:
        return "", error.what
    rules = f" {settings.policy}" if verb == "prune" and settings.policy is not None else ""
    running = next((use for use in found.uses if use.is_running), None)
    if running is not None:
        where = f"--libvirt {shell_word(running.domain)} --device {shell_word(running.target)}"
        return f"chainlift {verb} {where}{rules}", None
    holder = next((holder for holder in found.holders if holder.may_write), None)
    if holder is None and not found.holders and not chain.layers[0].file.has_writer():
        return f"chainlift {verb} {shell_word(found.path)}{rules}", None
    socket = None if holder is None or holder.pid is None else monitor_of(holder.pid)
    if socket is None:
        return "", f"{found.held_by or 'a QEMU'} has it open, and no QMP socket of it is known"
    return f"chainlift {verb} --qmp {shell_word(socket)} {shell_word(found.path)}{rules}", None


def monitor_of(pid: int) -> str | None:
    """Return the QMP socket of a QEMU, as its command line says; None where it has none, or it is libvirt's.

    :param pid: of the process.
    """
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        directory = os.readlink(f"/proc/{pid}/cwd")  # noqa: PTH115 - any bytes
        for name in _sockets([os.fsdecode(word) for word in words]):
            path = os.path.join(directory, name)  # noqa: PTH118 - any bytes
            if os.path.exists(path) and "/libvirt/" not in path:  # noqa: PTH110
                return path
    return None


def _sockets(words: list[str]) -> list[str]:
    """Return the sockets on which a QEMU with this command line listens for QMP."""
    found, by_id, wanted = [], dict[str, str](), list[str]()
    for option, value in pairwise(words):
        kind, _, rest = value.partition(",")
        keys = dict(part.partition("=")[::2] for part in rest.split(","))
        match option.removeprefix("--").removeprefix("-"):
            case "qmp" | "qmp-pretty" if kind.startswith("unix:"):
                found.append(kind.removeprefix("unix:"))
            case "chardev" if kind == "socket" and "path" in keys and "id" in keys:
                by_id[keys["id"]] = keys["path"]
            case "mon" | "monitor":
                # -mon [chardev=]ID,mode=control; the storage daemon's --monitor chardev=ID knows no other mode.
                whole = dict(part.partition("=")[::2] for part in value.split(","))
                if whole.get("mode") == "control" or option.endswith("monitor"):
                    wanted.append(whole.get("chardev", kind))
    return found + [by_id[name] for name in wanted if name in by_id]
