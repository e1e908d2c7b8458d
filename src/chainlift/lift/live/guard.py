"""When a running disk must not be touched: each reason is one line, found before anything is changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from chainlift import facts
from chainlift.errors import ImageError, InputError
from chainlift.host.filesystem import is_same_file
from chainlift.lift.live.graph import User
from chainlift.lift.neighbours.locks import is_written
from chainlift.units import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chainlift.lift.live.disks import LiveDisk
    from chainlift.lift.live.graph import BlockGraph
    from chainlift.lift.live.qmp import Qmp
    from chainlift.lift.live.seen_process import SeenProcess

#: Migration states in which nothing is moving (qapi/migration.json, MigrationStatus).
_AT_REST: Final = frozenset({"none", "completed", "failed", "cancelled"})
_NEEDED: Final = ("blockdev-reopen", "change-backing-file", "x-debug-query-block-graph", "query-block-exports")


def refuse_old_qemu(monitor: Qmp) -> None:
    """Refuse a QEMU that cannot exchange a backing node.

    :raise InputError: naming the command that it lacks.
    """
    known = {command["name"] for command in monitor.execute("query-commands")}
    missing = [command for command in _NEEDED if command not in known]
    if missing:
        raise InputError(
            f"this QEMU has no {missing[0]}", hint="a running disk can be switched from QEMU 6.1 on; stop it first"
        )


def refuse_migration(monitor: Qmp) -> None:
    """Refuse while the VM migrates, or waits for one that comes in.

    :raise InputError: saying what goes on.
    """
    known = {command["name"] for command in monitor.execute("query-commands")}
    if "query-migrate" in known:
        status = monitor.execute("query-migrate").get("status", "none")
        if status not in _AT_REST:
            raise InputError(f"a migration is under way ({status})", hint="wait until it is done, or cancel it")
    if "query-status" in known:
        status = monitor.execute("query-status")["status"]
        if status in ("inmigrate", "postmigrate", "finish-migrate"):
            raise InputError(f"the VM is in state {status}", hint="its disks belong to another QEMU now, or soon")


def refuse_changed(graph: BlockGraph, disk: LiveDisk) -> None:
    """Refuse a disk that has gone, or got another active layer, since it was chosen.

    :raise InputError: saying which.
    """
    if disk.node not in graph.names:
        raise InputError("the disk was unplugged meanwhile", path=disk.path, hint="it is not this QEMU's any more")
    if not graph.is_active(disk.node, disk.root) and not has_jobs(graph, disk):
        raise InputError(
            f"the disk got another active layer meanwhile (node {graph.top(disk.node)})",
            path=disk.path,
            hint="run it again",
        )


def has_jobs(graph: BlockGraph, disk: LiveDisk) -> bool:
    """Whether a block job works on the disk's chain, or on what is over it."""
    return bool(graph.jobs({*graph.subtree(disk.node), *graph.above(disk.node)}))


def refuse_node(graph: BlockGraph, disk: LiveDisk) -> None:
    """Refuse a disk whose active node cannot be reopened as it is.

    :raise InputError: naming the node and why.
    """
    node = graph.nodes[disk.node]
    if not node.is_named:
        raise InputError(
            f"the disk's node {node.name} was named by QEMU itself (-drive, -hda), which blockdev-reopen refuses",
            hint="take an external snapshot with a snapshot-node-name, or start the VM with -blockdev",
        )
    if node.driver != "qcow2":
        raise InputError(f"the disk's node {node.name} is {node.driver}, not qcow2", hint="there is no chain to lift")
    if node.read_only:
        raise InputError(
            f"the disk's node {node.name} is read-only", hint="only a disk that is written to can be switched"
        )
    if node.encrypted:
        raise InputError(f"the disk's node {node.name} is encrypted", hint="lifting encrypted layers is not supported")
    if disk.path is None:
        raise InputError(f"the disk's node {node.name} is not in a local file", hint="only local files can be lifted")
    refuse_nameless(graph, disk)


def refuse_nameless(graph: BlockGraph, disk: LiveDisk) -> None:
    """Refuse a chain of which a file has no name that leads to it now: nobody could open it again.

    A QEMU that was started with ``-daemonize`` is in ``/`` by now, and its relative names lead nowhere
    (``os_setup_post()`` in os-posix.c); a reopen of such a node may fail long after.

    :raise InputError: naming the node and the name.
    """
    for name in graph.backing_chain(disk.node):
        file = graph.protocol_file(name)
        if file is None:
            continue
        if file.startswith("/dev/fdset/"):
            raise InputError(
                f"node {name} was opened through a file descriptor that QEMU was given ({file}), under no name that "
                "could be opened again",
                hint="let QEMU open its disks by their names",
            )
        if not Path(file).exists():
            raise InputError(
                f"node {name} is {file}, and there is no such file here: it was renamed or deleted, or it is a "
                "relative name in a directory that QEMU has left (-daemonize), or QEMU has another mount namespace",
                hint="start QEMU with absolute names, and run in its container",
            )


def refuse_chain_in_use(graph: BlockGraph, disk: LiveDisk) -> None:
    """Refuse where a block job, or a filter between layers, holds on to the chain.

    :raise InputError: naming the job or the filter.
    """
    chain = graph.backing_chain(disk.node)
    # A filter between layers is a node whose next layer is its `file` child: the backing chain seems to end there.
    for name in chain:
        if graph.nodes[name].is_filter:
            raise InputError(
                f"the {graph.nodes[name].driver} filter {name} lies between the layers and would be lost",
                hint="remove it, or finish the job that it belongs to",
            )
    below = {name for top in chain for name in graph.layer_nodes(top)} | set(_filters_above(graph, disk))
    for user, node in graph.users():
        if user.kind == "block-job" and node in below:
            raise InputError(
                f"the block job {user.name or '(unnamed)'} works on node {node}", hint="wait until it is done"
            )
    for name in _filters_above(graph, disk):
        # Not in FILTERS, because nobody can ask for them: they belong to a job that has not begun or is being finished.
        if graph.nodes[name].driver in (
            "mirror_top",
            "commit_top",
            "backup-top",
            "copy-before-write",
            "snapshot-access",
        ):
            raise InputError(f"a block job has its {graph.nodes[name].driver} filter over the disk", hint="wait for it")


def _filters_above(graph: BlockGraph, disk: LiveDisk) -> list[str]:
    found: list[str] = []
    waiting = [disk.node]
    while waiting:
        for edge in graph.parents(waiting.pop()):
            if not isinstance(edge.parent, User) and edge.parent not in found:
                found.append(edge.parent)
                waiting.append(edge.parent)
    return found


def refuse_iothread(disk: LiveDisk, version: tuple[int, int, int], iothreads: Sequence[str]) -> None:
    """Refuse where QEMU would die of its own bugs.

    Before 9.0 (when NBD's server and the graph got locks of their own) an export's server in an iothread does not
    survive that its disk is drained under load: 7.2 ends with ``nbd_client_put: Assertion `client->closing' failed`` in
    one of five pivots or so. Which iothread serves an export is not told by QMP, only by the command line. Devices in
    an iothread are fine, see :mod:`chainlift.lift.live.pivot`.

    :param disk: what is to be switched.
    :param version: of the QEMU that has it.
    :param iothreads: of that QEMU, by name.
    :raise InputError: saying what to do.
    """
    if not facts.LOCKLESS.holds(version) and (
        not disk.iothread_is_known or (disk.is_exported and disk.iothread is not None)
    ):
        if not iothreads:
            return
        number = ".".join(map(str, version))
        raise InputError(
            f"QEMU {number} may die if a disk is switched that it exports from an iothread",
            hint="export it without iothread, or use QEMU from 9.0 on",
        )


def refuse_stream(disk: LiveDisk, version: tuple[int, int, int], iothreads: Sequence[str]) -> None:
    """Refuse a ``block-stream`` of which QEMU would die, whether we or anybody else asks for it.

    The job puts a filter over the node, and to open it QEMU since 9.0 moves the node to the main loop if it may, which
    is where only an export in an iothread uses it. ``bdrv_insert_node()`` in block.c then ends 10.0 and 11.1 with
    ``Assertion `bdrv_get_aio_context(bs) == ctx' failed``.

    :param disk: what is to be streamed.
    :param version: of the QEMU that has it.
    :param iothreads: of that QEMU, by name.
    :raise InputError: saying what to do.
    """
    may_be_in_one = bool(iothreads) and (disk.iothread is not None or not disk.iothread_is_known)
    if facts.LOCKLESS.holds(version) and disk.is_exported and may_be_in_one and not disk.is_pinned:
        raise InputError(
            f"QEMU {'.'.join(map(str, version))} dies of block-stream where an export's iothread alone serves the disk",
            hint="export it with fixed-iothread=on, or without iothread",
        )


def refuse_other_chain(graph: BlockGraph, top: str, layers: Sequence[tuple[Path, str]], process: SeenProcess) -> None:
    """Refuse a chain that is not the same in QEMU and on disk, compared node by node and by the files' identity.

    :param top: the node of the first of the layers.
    :param layers: path and format of each layer on disk, top first.
    :raise ImageError: naming the first layer that differs.
    """
    chain = graph.backing_chain(top)
    for depth, (path, layer_format) in enumerate(layers):
        if depth >= len(chain):
            raise ImageError(
                f"is layer {depth} on disk, and QEMU's chain ends before it",
                path=path,
                hint="see query-named-block-nodes",
            )
        node = graph.nodes[chain[depth]]
        opened = graph.protocol_file(node.name)
        where = f"QEMU's layer {depth} (node {node.name})"
        if (read_as := graph.format_of(node.name)) != layer_format:
            raise ImageError(f"is {layer_format} on disk and {where} reads it as {read_as}", path=path)
        if opened is None:
            raise ImageError(f"{where} is no local file", path=path, hint="its header on disk names this one")
        if not is_same_file(Path(opened), path):
            raise ImageError(f"{where} is {opened}", path=path, hint="the header on disk names this one instead")
        if process.has_open(path) is False:
            raise ImageError(
                f"was replaced: {where} still has the file open that had this name before",
                path=path,
                hint="put the original file back",
            )
    if len(chain) > len(layers):
        node_name, more = chain[len(layers)], counted(len(chain) - len(layers), "more layer")
        raise ImageError(
            f"is the base on disk, and QEMU has {more} from node {node_name} on",
            path=layers[-1][0],
        )


def refuse_unknown_process(process: SeenProcess, image: Path) -> None:
    """Refuse where it cannot be told whether QEMU's files are the ones that we see.

    :raise InputError: saying why.
    """
    if process.open_files is None:
        who = f"process {process.pid}" if process.pid else "the process behind the socket"
        raise InputError(
            f"the open files of {who} cannot be seen", path=image, hint="run as root, in the same container as QEMU"
        )


def refuse_writers(graph: BlockGraph, disk: LiveDisk) -> None:
    """Refuse if anybody, this QEMU included, has a layer under the active one open for writing.

    :raise ImageError: naming the layer.
    """
    for name in graph.backing_chain(disk.node)[1:]:
        file = graph.protocol_file(name)
        if any(map(graph.is_written, graph.layer_nodes(name))) or (file is not None and is_written(Path(file))):
            raise ImageError(
                "is open for writing, though it lies under the active layer",
                path=file or name,
                hint="a layer that changes cannot be lifted; end the commit or close the other program",
            )
