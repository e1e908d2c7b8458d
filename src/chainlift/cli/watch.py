"""``chainlift watch``: keep the chains of running VMs short; and what a person has to say to that."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from chainlift.cli.options import OUTPUT_FILE
from chainlift.cli.sizes import SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chainlift.lift.prune.retention import Policy
    from chainlift.lift.watching.service import Watch

_USUAL_LENGTH = 32
_state_option = click.option(
    "--state",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="Keep counters and pauses in DIR.  [default: $STATE_DIRECTORY, or /var/lib/chainlift]",
)


@click.group(invoke_without_command=True)
@click.option(
    "--qmp", "sockets", type=click.Path(path_type=Path), multiple=True, metavar="SOCKET", help="A VM's socket."
)
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR",
    help="All sockets in DIR, as they come.",
)  # fmt: skip
@click.option(
    "--libvirt", "uri", is_flag=False, flag_value="", metavar="[URI]",
    help="libvirt's running domains, which are squashed; on the connection that virsh takes, or URI.",
)  # fmt: skip
@click.option(
    "--domain", "domains", multiple=True, metavar="PATTERN", help="Of libvirt's domains only these: vm7, 'web-*'."
)
@click.option(
    "--max-length", type=click.IntRange(min=1), metavar="N",
    help="Lift above this length.  [default: 32; fewer where libvirt takes no more]",
)  # fmt: skip
@click.option(
    "--prune", "policy", metavar="RULES",
    help="Delete snapshots that no rule keeps, instead of lifting: last=24,daily=7,weekly=4; see chainlift prune.",
)  # fmt: skip
@click.option("--only", metavar="PATTERN", help="With --prune, only those of such a file name: 'auto-*'.")
@click.option(
    "--interval", type=click.FloatRange(min=1), default=60, show_default=True, metavar="S", help="Between rounds."
)
@click.option("--copy-budget", type=SIZE, metavar="SIZE", help="As of chainlift index.")
@click.option("--rate", type=SIZE, metavar="SIZE", help="As of chainlift squash, with --libvirt.")
@click.option(
    "--jobs", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Lift N disks at a time."
)
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=1), metavar="S",
    help="Wait so long for a socket to be free, and for each answer.  [default: 10 and 120]",
)  # fmt: skip
@_state_option
@click.option("--status", type=OUTPUT_FILE, metavar="FILE", help="Write a JSON status there.")
@click.option("--metrics", type=OUTPUT_FILE, metavar="FILE", help="Write Prometheus text there.")
@click.option("--qemu", "qemu_name", default="host", metavar="QEMU", help="Whose storage daemon compares a sample.")
@click.option("--once", is_flag=True, help="One round; exit status 1 if something went wrong.")
@click.pass_context
def command(
    context: click.Context,
    sockets: tuple[Path, ...],
    directory: Path | None,
    uri: str | None,
    domains: tuple[str, ...],
    max_length: int | None,
    policy: str | None,
    only: str | None,
    interval: float,
    copy_budget: int | None,
    rate: int | None,
    jobs: int,
    timeout_s: float | None,
    state: Path | None,
    status: Path | None,
    metrics: Path | None,
    qemu_name: str,
    once: bool,
) -> None:
    """Lift the disks of running VMs whenever their chains have grown longer than --max-length, or prune them.

    At a QMP socket a disk is indexed. A socket is only held while it is asked, so a backup tool may use the same one in
    between. Through libvirt a disk is squashed, by libvirt's own block copy: its definitions name the new chain.

    With --prune, nothing is lifted: the snapshots that no rule keeps are deleted, as chainlift prune does.

    Every action is one line on standard error. SIGTERM ends it with status 0, when what is under way is finished or
    undone.

    A VM, or one disk, can be paused. A disk that somebody has restored under its running VM is paused from then on.
    """
    if context.invoked_subcommand is not None:
        _refuse_options(context)
        context.obj = state
        return
    if not sockets and directory is None and uri is None:
        raise click.UsageError("Missing option '--qmp', '--dir' or '--libvirt'")
    if domains and uri is None:
        raise click.UsageError("--domain goes with --libvirt")
    if only is not None and policy is None:
        raise click.UsageError("--only goes with --prune")
    if policy is not None and max_length is not None:
        raise click.UsageError("--prune lifts nothing, so --max-length does not go with it")
    import json
    import os

    from chainlift.errors import AnswerIsNo
    from chainlift.host.priority import lower_priority
    from chainlift.lift.watching.service import Settings, Watch
    from chainlift.lift.watching.status import as_json
    from chainlift.lift.watching.visit import Rules
    from chainlift.qemu.find import find_qemu

    state_directory, keeps_state = _state(state)
    qemu = find_qemu(qemu_name, need=["storage-daemon"] if uri is None else ["img", "storage-daemon"])
    if uri:
        os.environ["LIBVIRT_DEFAULT_URI"] = uri  # what every virsh of ours takes
    longest = _max_length(max_length, is_libvirts=uri is not None)
    lower_priority()
    watch = Watch(
        Settings(
            Rules(longest, copy_budget, timeout_s, state_directory, qemu, rate, _policy(policy, only)),
            sockets=sockets,
            directory=directory,
            domains=None if uri is None else domains or ("*",),
            interval_s=interval,
            jobs=jobs,
            keeps_state=keeps_state,
            status_file=status,
            metrics_file=metrics,
        )
    )
    with _ended_by_signals(watch):
        watch.run(once=once)
    if once:
        if status is None:
            click.echo(json.dumps(as_json(watch.status), indent=1))
        if troubles := watch.status.troubles():
            raise AnswerIsNo(f"{len(troubles)} of the disks, sockets and files could not be served")


@command.command()
@click.argument("what", metavar="NAME|IMAGE|SOCKET")
@_state_option
@click.pass_context
def pause(context: click.Context, what: str, state: Path | None) -> None:
    """Leave a VM alone (by its name or its socket), or one disk (by its image), until `watch resume`.

    A VM's name is QEMU's (-name), else its socket's without a suffix. A disk stays paused when it is renamed, and
    when snapshots are taken of it.
    """
    from chainlift.lift.watching.said import is_known, pause, target_of

    directory = _said_in(context, state)
    target = target_of(what)
    is_new = pause(directory, target)
    click.echo(f"{target}: {'paused' if is_new else 'is paused already'}")
    if not is_known(directory, target):
        click.echo(f"chainlift: warning: watch has seen no VM {target} yet; it is paused when there is one", err=True)


@command.command()
@click.argument("what", metavar="NAME|IMAGE|SOCKET")
@_state_option
@click.pass_context
def resume(context: click.Context, what: str, state: Path | None) -> None:
    """Care for a VM, or one disk, again: after `watch pause`, or after a restore.

    By a VM's name or socket, also all disks of it that are paused by themselves.
    """
    from chainlift.lift.watching.said import resume, target_of

    target = target_of(what)
    was_paused = resume(_said_in(context, state), target)
    click.echo(f"{target}: {'goes on' if was_paused else 'was not paused itself; disks of it that were go on'}")


@command.command("list")
@_state_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def list_(context: click.Context, state: Path | None, as_json: bool) -> None:
    """List what is paused, and the disks that watch knows."""
    from chainlift.cli.json_output import print_json
    from chainlift.cli.table import print_table
    from chainlift.lift.watching.said import known
    from chainlift.units import counted

    directory = _said_in(context, state, writes=False)
    found = known(directory)
    if as_json:
        print_json(found)
        return
    for entry in found["paused"]:
        click.echo(f"paused: {entry['what']}, since {entry['since']}")
    rows = [
        (row["vm"], row["disk"], str(row["length"]), row["state"], row["seen_at"], row["paused"] or "")
        for row in found["disks"]
    ]
    columns = ("VM", "disk", "length", "state", "seen", "paused")
    note = "" if found["is_watched"] else "no watch runs with this state directory"
    print_table(f"{counted(len(rows), 'disk')} in {directory}", columns, rows, numeric={2}, note=note)


def _policy(rules: str | None, only: str | None) -> Policy | None:
    from chainlift.lift.prune.retention import Policy, Retention

    if rules is None:
        return None
    try:
        return Policy(Retention.parse(rules), only)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'--prune'") from None


def _max_length(given: int | None, *, is_libvirts: bool) -> int:
    """Return how long a chain may be; libvirt starts no domain on one that is too long for it."""
    from chainlift.chain.libvirt_limits import libvirt_limit
    from chainlift.host.libvirt_version import libvirt_version

    version = libvirt_version() if is_libvirts else None
    if version is None:
        return given or _USUAL_LENGTH
    limit = libvirt_limit(version)
    if given is None:
        return min(_USUAL_LENGTH, limit.longest // 2)
    if given >= limit.longest:
        click.echo(f"chainlift: warning: --max-length {given} is too many: {limit.describe()}", err=True)
    return given


def _state(given: Path | None) -> tuple[Path, bool]:
    """Return the state directory, and whether it can be written to; only the usual one need not be."""
    import os

    from chainlift.errors import InputError
    from chainlift.lift.record.mark import state_directory

    directory = given if given is not None else state_directory()
    try:
        directory.mkdir(mode=0o755, exist_ok=True)
        is_there = os.access(directory, os.W_OK | os.X_OK)
        why = "Permission denied"
    except OSError as error:
        is_there, why = False, error.strerror or str(error)
    if is_there:
        return directory, True
    if given is not None or "STATE_DIRECTORY" in os.environ:
        raise InputError(f"cannot be written: {why}", path=directory, hint="name another one with --state")
    click.echo(
        f"chainlift: warning: {directory}: cannot be written: {why}; counters begin anew at every start (see --state)",
        err=True,
    )
    return directory, False


def _said_in(context: click.Context, state: Path | None, *, writes: bool = True) -> Path:
    from chainlift.lift.record.mark import state_directory

    given = state or context.obj
    if writes:
        directory, is_there = _state(given or state_directory())
        assert is_there
        return directory
    return given or state_directory()


def _refuse_options(context: click.Context) -> None:
    """Refuse options of the watch itself before pause, resume and list; --state is of both."""
    from click.core import ParameterSource

    for parameter in context.command.params:
        name = parameter.name or ""
        if name != "state" and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{parameter.opts[0]} does not go with {context.invoked_subcommand}")


@contextmanager
def _ended_by_signals(watch: Watch) -> Iterator[None]:
    """Let SIGTERM end a watch with status 0, and Ctrl-C as it ends everything; both when what is under way is done."""
    import signal

    came: list[int] = []

    def end(number: int, _frame: object) -> None:
        came.append(number)
        watch.stop(signal.Signals(number).name)

    numbers = [signal.SIGTERM, *([signal.SIGINT] if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN else [])]
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if signal.SIGINT in came:
        raise KeyboardInterrupt
