"""What ``prune`` and ``drop`` say: which snapshots go, which stay and why, and what that frees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from chainlift.lift.disk import Disk
    from chainlift.lift.prune.choose import Fate
    from chainlift.lift.prune.verb import Pruned

#: Why a layer stays that is no snapshot.
_STAYS = ("the image", "the base")


def say_switched(disk: Disk, done: Pruned, *, dry_run: bool) -> str:
    """Say on standard error what was left of a switch; return how it went, for the end of the last line."""
    from chainlift.cli.disk import describe_switch

    return "" if dry_run or not done.rewritten else describe_switch(disk)


def say_pruned(done: Pruned, *, dry_run: bool, as_json: bool, switched: str = "") -> None:
    """Print what was done, or would be.

    :param dry_run: then with a table of all layers.
    :param switched: how a running disk was switched; begins with a semicolon.
    """
    from chainlift.cli.json_output import print_json
    from chainlift.errors import one_line
    from chainlift.units import counted, format_bytes, format_seconds

    if done.searched and (done.deleted or done.left):
        click.echo(one_line(f"chainlift: {done.searched}"), err=True)
    if as_json:
        print_json(_as_dictionary(done, dry_run=dry_run))
    elif dry_run:
        _print_table(done)
    going = [fate for fate in done.fates if fate.goes]
    for fate in done.fates:
        if fate.is_kept_back:
            click.echo(one_line(f"chainlift: kept {fate.path}: {fate.why}"), err=True)
    if any(fate.is_kept_back and fate.why.startswith("snapshot ") for fate in done.fates):
        forget = "virsh snapshot-delete DOMAIN NAME --metadata"
        click.echo(f"chainlift: libvirt forgets a snapshot, so that its layer can go, with {forget}", err=True)
    for path, why in done.left.items():
        click.echo(one_line(f"chainlift: not deleted: {path}: {why}"), err=True)
    if as_json:
        return
    snapshots = [fate for fate in done.fates if fate.why not in _STAYS]
    if not going:
        stay = "there is none" if not snapshots else f"{counted(len(snapshots), 'snapshot')} stay"
        click.echo(one_line(f"{done.image}: nothing goes, {stay if len(snapshots) != 1 else '1 snapshot stays'}"))
        return
    would = "would go" if dry_run else "are deleted" if len(going) > 1 else "is deleted"
    shared = f", {format_bytes(done.cloned_bytes)} shared" if done.cloned_bytes else ""
    # Small clusters merged into large ones take more than they had.
    freed = f"{format_bytes(abs(done.freed_bytes))} {'freed' if done.freed_bytes >= 0 else 'more on disk'}"
    takes = "" if done.seconds is None else f" in {'about ' if dry_run else ''}{format_seconds(done.seconds)}"
    click.echo(
        one_line(
            f"{done.image}: {len(going)} of {counted(len(snapshots), 'snapshot')} {would}, "
            f"{freed}; {counted(len(done.rewritten), 'layer')} written anew, "
            f"{format_bytes(done.copied_bytes)} copied{shared}{takes}{switched}"
        )
    )


def _print_table(done: Pruned) -> None:
    from chainlift.cli.table import print_table
    from chainlift.units import format_bytes

    rows = [(fate.path, _time(fate), format_bytes(fate.on_disk_bytes), _what(fate)) for fate in done.fates]
    print_table("", ("layer", "last write", "on disk", "what becomes of it"), rows, numeric=(2,))


def _what(fate: Fate) -> str:
    return "goes" if fate.goes else f"stays: {fate.why}"


def _time(fate: Fate) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(fate.time_s, UTC).astimezone().strftime("%a %Y-%m-%d %H:%M")


def _as_dictionary(done: Pruned, *, dry_run: bool) -> dict[str, object]:
    return {
        "image": str(done.image),
        "dry_run": dry_run,
        "layers": [
            {
                "path": fate.path,
                "time_s": fate.time_s,
                "on_disk_bytes": fate.on_disk_bytes,
                "goes": fate.goes,
                "why": fate.why or None,
                "kept_back": fate.is_kept_back,
            }
            for fate in done.fates
        ],
        "deleted": [str(path) for path in done.deleted],
        "left": {str(path): why for path, why in done.left.items()},
        "rewritten": [str(path) for path in done.rewritten],
        "copied_bytes": done.copied_bytes,
        "cloned_bytes": done.cloned_bytes,
        "freed_bytes": done.freed_bytes,
        "seconds": done.seconds,
    }
