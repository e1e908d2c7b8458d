"""Which chains there are on this host: below directories, and under libvirt's domains.

A chain is one active layer with all that it stands on. An image is an active layer where no other image stands on it,
or where a libvirt definition says so. Nothing ends the search: what cannot be read is told.
"""

from __future__ import annotations

import hashlib
import os
import platform
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chainlift.chain.names import parse_name
from chainlift.errors import ChainliftError
from chainlift.lift.forest.active import active_nodes
from chainlift.lift.forest.scan import scan
from chainlift.lift.neighbours.ask_libvirt import read_definitions
from chainlift.lift.neighbours.processes import Identity, OpenFiles, describe_holders, identity_of
from chainlift.results.survey.records import Source, Trouble, Use
from chainlift.survey.words import readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from chainlift.lift.forest.scan import Forest, Node
    from chainlift.lift.neighbours.definitions import DefinedDisk
    from chainlift.lift.neighbours.processes import Holder


@dataclass(frozen=True)
class Found:
    """A chain that is to be described."""

    #: The active layer, by the name by which what it stands on is found.
    path: str
    host: str
    #: The same as long as nothing was written to any file of the chain, nor put in a file's place.
    stamp: str
    #: What is at the bottom, as far as it can be followed.
    base: str
    #: The uppermost layer that other chains stand on, too; None where there is none.
    shared_base: str | None
    #: Chains that stand on it.
    shared_by: int
    shared_identity: Identity | None
    #: What files take that no other chain stands on, and what the others take.
    own_bytes: int
    shared_bytes: int
    uses: tuple[Use, ...]
    holders: tuple[Holder, ...]
    modified_s: float

    @property
    def held_by(self) -> str:
        """Who has the active layer open."""
        return describe_holders(self.holders)

    @property
    def key(self) -> tuple[str, str]:
        """As :attr:`chainlift.results.survey.records.Chain.key`."""
        return self.host, readable(self.path)


@dataclass(frozen=True)
class Finding:
    """What there is on this host."""

    chains: list[Found]
    troubles: list[Trouble]
    #: qcow2 images.
    images: int
    #: What all images and what they stand on take, each once.
    disk_bytes: int


def host_name() -> str:
    """Return what this host is called in records."""
    return platform.node() or "localhost"


def sources_of(paths: Sequence[str]) -> tuple[Source, ...]:
    """Return the places as they stand in a survey's head."""
    host = host_name()
    return tuple(Source(host=host, path=readable(os.path.realpath(path))) for path in paths)


def find(paths: Iterable[str], *, with_libvirt: bool = True, tell: Callable[[str], None] | None = None) -> Finding:
    """Find every chain.

    :param paths: directories, and images.
    :param with_libvirt: also the disks of this host's libvirt domains, wherever they lie.
    :param tell: called with what is done next.
    """
    tell = tell or (lambda _: None)
    troubles: list[Trouble] = []
    directories: list[str] = []
    images: list[str] = []
    for path in paths:
        try:
            is_directory = stat.S_ISDIR(os.stat(path).st_mode)  # noqa: PTH116
        except (OSError, ValueError) as error:
            troubles.append(_trouble(path, f"cannot be searched: {_reason(error)}"))
            continue
        (directories if is_directory else images).append(os.path.abspath(path))  # noqa: PTH100 - links stay
    tell("asking libvirt")
    disks = _domain_disks(troubles) if with_libvirt else []
    tell("searching for images")
    forest = scan(directories, [*images, *(path for path, _ in disks)])
    troubles += [_trouble(path, why) for path, why in forest.unreadable.items()]
    for path in images:
        if not _is_known(path, forest):
            troubles.append(_trouble(path, "is no qcow2 image"))
    tell("looking who has them open")
    uses = _uses(disks)
    wanted = {identity_of(os.stat(path)) for path in images if os.path.exists(path)}  # noqa: PTH110, PTH116
    chains = _Chains(forest, OpenFiles.look(), uses, wanted | set(uses))
    nodes = forest.nodes.values()
    return Finding(
        chains.all(),
        troubles,
        images=sum(node.format == "qcow2" for node in nodes),
        disk_bytes=sum(node.disk_bytes for node in nodes),
    )


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _trouble(path: str, what: str) -> Trouble:
    return Trouble(host=host_name(), path=readable(path), what=readable(what))


def _is_known(path: str, forest: Forest) -> bool:
    if path in forest.unreadable:
        return True
    with suppress(OSError):
        return identity_of(os.stat(path)) in forest.nodes  # noqa: PTH116
    return True  # it went meanwhile, and the search has told


def _domain_disks(troubles: list[Trouble]) -> list[tuple[str, DefinedDisk]]:
    definitions = read_definitions()
    if definitions.problem is not None:
        troubles.append(_trouble("libvirt", definitions.problem))
    return [(path, disk) for path, disk in definitions.disks if os.path.isabs(path)]  # noqa: PTH117


def _uses(disks: list[tuple[str, DefinedDisk]]) -> dict[Identity, list[Use]]:
    """Return the disks of each active layer; one that runs and is defined with the same layer once."""
    uses: dict[Identity, dict[tuple[str, str], Use]] = {}
    for path, disk in disks:
        with suppress(OSError):  # the search has told that it is not there
            known = uses.setdefault(identity_of(os.stat(path)), {})  # noqa: PTH116
            key = disk.domain, disk.target
            if key not in known or disk.running:
                known[key] = Use(domain=readable(disk.domain), target=disk.target, is_running=disk.running)
    return {identity: list(known.values()) for identity, known in uses.items()}


class _Chains:
    """Tells the chains of a forest.

    :param wanted: images that are active layers although others may stand on them.
    """

    def __init__(
        self, forest: Forest, open_files: OpenFiles, uses: dict[Identity, list[Use]], wanted: set[Identity]
    ) -> None:
        self._forest = forest
        self._open_files = open_files
        self._uses = uses
        self._host = host_name()
        tops = {node.identity for node in active_nodes(forest) if not node.is_outside}
        self._tops = tops | {one for one in wanted if one in forest.nodes and forest.nodes[one].format == "qcow2"}
        #: Of each image: its stamp, what is at the bottom of it, what all of its files take.
        self._below: dict[Identity, tuple[str, Node, int]] = {}
        self._chains_over: dict[Identity, int] = {}
        #: Of each image that others stand on, too: it; of others the one below; None where there is none.
        self._shared: dict[Identity, Node | None] = {}
        self._look_from_the_bases_up()

    def all(self) -> list[Found]:
        """Return the chains, those on one base one after the other: what they share is then read once."""
        tops = [node for node in self._forest.nodes.values() if node.identity in self._tops]
        tops.sort(key=lambda node: (self._below[node.identity][1].path, node.path))
        return [self._found(node) for node in tops]

    def _look_from_the_bases_up(self) -> None:
        order, waiting = [], self._forest.roots()
        while waiting:
            node = waiting.pop()
            order.append(node)
            waiting += self._forest.standing_on(node)
            below = None if node.below is None else self._below[node.below]
            self._below[node.identity] = (
                _stamp(node, "" if below is None else below[0]),
                node if below is None else below[1],
                node.disk_bytes + (0 if below is None else below[2]),
            )
        for node in reversed(order):
            above = self._forest.above.get(node.identity, ())
            self._chains_over[node.identity] = (node.identity in self._tops) + sum(
                self._chains_over[one] for one in above
            )
        for node in order:
            is_shared = self._chains_over[node.identity] > 1
            below_it = None if node.below is None else self._shared[node.below]
            self._shared[node.identity] = node if is_shared else below_it

    def _found(self, node: Node) -> Found:
        stamp, base, all_bytes = self._below[node.identity]
        shared = self._shared[node.identity]
        if shared is node:  # a domain's active layer that somebody has put an overlay on
            shared = None if node.below is None else self._shared[node.below]
        shared_bytes = 0 if shared is None else self._below[shared.identity][2]
        uses = tuple(self._uses.get(node.identity, ()))
        try:
            holders = tuple(self._open_files.holders_of(os.stat(node.path)))  # noqa: PTH116 - any bytes
        except OSError:  # it went meanwhile
            holders = ()
        return Found(
            path=self._name(node),
            host=self._host,
            stamp=stamp,
            base=base.path,
            shared_base=None if shared is None else shared.path,
            shared_by=0 if shared is None else self._chains_over[shared.identity],
            shared_identity=None if shared is None else shared.identity,
            own_bytes=all_bytes - shared_bytes,
            shared_bytes=shared_bytes,
            uses=uses,
            holders=holders,
            modified_s=node.modified_s,
        )

    def _name(self, node: Node) -> str:
        """Return the name by which what a header names was found: a relative one counts from a link's directory."""
        if node.pointer is not None and node.reference is not None:
            names: list[str] = [node.path, *self._forest.links.get(node.identity, ())]
            for name in names:
                with suppress(ChainliftError):
                    pointed = parse_name(node.pointer.name, named_in=name, file_format=node.pointer.format)
                    if pointed.path == node.reference.path:
                        return name
        return node.path


def _stamp(node: Node, below: str) -> str:
    """Return what is another one as soon as an image, or anything that it stands on, is written to or replaced."""
    text = repr((node.path, node.identity, node.disk_bytes, node.modified_s, node.virtual_size, node.trouble, below))
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
