"""``chainlift prune``: which snapshots stay is said by rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from chainlift.cli.disk import disk_options, force_option, qemu_option, search_option

if TYPE_CHECKING:
    from pathlib import Path

    from chainlift.cli.disk import DiskName

_COUNT = click.IntRange(min=-1)


@click.command()
@disk_options
@click.option("--keep-last", type=_COUNT, default=0, metavar="N", help="Keep the newest N snapshots.")
@click.option("--keep-hourly", type=_COUNT, default=0, metavar="N", help="Keep the newest of each of N hours.")
@click.option("--keep-daily", type=_COUNT, default=0, metavar="N", help="Keep the newest of each of N days.")
@click.option("--keep-weekly", type=_COUNT, default=0, metavar="N", help="Keep the newest of each of N weeks.")
@click.option("--keep-monthly", type=_COUNT, default=0, metavar="N", help="Keep the newest of each of N months.")
@click.option(
    "--keep", type=click.Path(), multiple=True, metavar="LAYER", help="Keep this one, too; several times for several."
)
@click.option("--only", metavar="PATTERN", help="The rules are for files of such a name ('auto-*'); all others stay.")
@click.option("--dry-run", is_flag=True, help="Only say what would go, what that frees, and what is copied.")
@search_option
@force_option
@qemu_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    name: DiskName,
    keep_last: int,
    keep_hourly: int,
    keep_daily: int,
    keep_weekly: int,
    keep_monthly: int,
    keep: tuple[str, ...],
    only: str | None,
    dry_run: bool,
    search: tuple[Path, ...],
    qemu_name: str,
    as_json: bool,
) -> None:
    """Delete the snapshots under IMAGE that no rule keeps; IMAGE itself and its base always stay.

    The rules mean what they mean to borg: each keeps the newest snapshot of each hour, day, week or month (local time,
    weeks from Monday), until it has kept N; what a rule before it keeps does not count. -1 is any number. A snapshot's
    time is that of its last write.

    What is seen of a snapshot that goes is merged into the next one above that stays: that reads the same bytes under
    the same name, at every moment. Snapshots that somebody else stands on, holds or names stay, and are named.
    """
    from chainlift.cli.byte_progress import byte_progress
    from chainlift.cli.pruned import say_pruned, say_switched
    from chainlift.lift.prune.retention import Retention
    from chainlift.lift.prune.verb import prune
    from chainlift.qemu.find import find_qemu

    retention = Retention(keep_last, keep_hourly, keep_daily, keep_weekly, keep_monthly)
    if retention.keeps_nothing and not keep:
        raise click.UsageError("nothing says what is to be kept: --keep-last 24, say")
    with (
        name.open(find_qemu(qemu_name, need=name.tools)) as disk,
        byte_progress("merging and comparing") as progress,
    ):
        done = prune(
            disk, retention, keep=keep, only=only, search=search, force=name.force, dry_run=dry_run, progress=progress
        )
        switched = say_switched(disk, done, dry_run=dry_run)
    say_pruned(done, dry_run=dry_run, as_json=as_json, switched=switched)
