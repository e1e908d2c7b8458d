"""``chainlift drop``: single snapshots go."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from chainlift.cli.disk import disk_options, force_option, qemu_option, search_option

if TYPE_CHECKING:
    from pathlib import Path

    from chainlift.cli.disk import DiskName


@click.command()
@disk_options
@click.argument("layers", nargs=-1, type=click.Path(), metavar="LAYER...")
@click.option("--dry-run", is_flag=True, help="Only say what that frees, and what is copied.")
@search_option
@force_option
@qemu_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    name: DiskName,
    layers: tuple[str, ...],
    dry_run: bool,
    search: tuple[Path, ...],
    qemu_name: str,
    as_json: bool,
) -> None:
    """Delete these snapshots under IMAGE, all of them or none.

    What is seen of each is merged into the next one above that stays, as `chainlift prune` does. A LAYER is named by
    its path, or by the name of its file. Where a running QEMU's disk is meant, only layers are named.
    """
    from chainlift.cli.byte_progress import byte_progress
    from chainlift.cli.pruned import say_pruned, say_switched
    from chainlift.lift.prune.verb import drop
    from chainlift.qemu.find import find_qemu

    first = name.image
    if name.is_running and first is not None:
        name, layers = replace(name, image=None), (first, *layers)
    if not layers:
        raise click.UsageError("Missing argument 'LAYER...'")
    with (
        name.open(find_qemu(qemu_name, need=name.tools)) as disk,
        byte_progress("merging and comparing") as progress,
    ):
        done = drop(disk, layers, search=search, force=name.force, dry_run=dry_run, progress=progress)
        switched = say_switched(disk, done, dry_run=dry_run)
    say_pruned(done, dry_run=dry_run, as_json=as_json, switched=switched)
