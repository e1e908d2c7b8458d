"""``chainlift squash``: the middle of a chain as one layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from chainlift.cli.disk import (
    content_option,
    disk_options,
    force_option,
    lift_dir_option,
    qemu_option,
    search_option,
)
from chainlift.cli.sizes import SIZE

if TYPE_CHECKING:
    from pathlib import Path

    from chainlift.cli.disk import DiskName


@click.command()
@disk_options
@click.option("--onto", type=click.Path(), metavar="LAYER", help="Squash down to this layer; without: to the base.")
@click.option("--delete-layers", is_flag=True, help="Delete the replaced layers after a comparison of every byte.")
@content_option
@click.option("--clean", is_flag=True, help="Remove the lift that this one replaces, where nobody else needs it.")
@search_option
@click.option("--drop-bitmaps", is_flag=True, help="Do not carry the layers' persistent bitmaps over.")
@click.option("--rate", type=SIZE, metavar="SIZE", help="Copy at most so much a second.")
@lift_dir_option
@force_option
@qemu_option
@click.option("--json", "as_json", is_flag=True, help="Print the lift's record as JSON.")
def command(
    name: DiskName,
    onto: str | None,
    delete_layers: bool,
    content: bool,
    clean: bool,
    search: tuple[Path, ...],
    drop_bitmaps: bool,
    rate: int | None,
    lift_dir: Path | None,
    qemu_name: str,
    as_json: bool,
) -> None:
    """Make one ordinary layer of everything between IMAGE and its base, and switch IMAGE to it.

    Blocks are shared where the file system has reflinks (XFS, Btrfs), else copied. `chainlift restore IMAGE` goes
    back, unless --delete-layers was given. With --qmp the disk is switched while its VM runs; with --libvirt, libvirt
    itself switches it to a new overlay beside IMAGE (docs/libvirt.md).
    """
    if search and not (clean or delete_layers):
        raise click.UsageError("--search goes with --clean or --delete-layers")
    if delete_layers and name.is_running:
        raise click.UsageError("--delete-layers goes with an image at rest: a VM might still have to go back")
    from concurrent.futures import ThreadPoolExecutor

    from chainlift.qemu.find import find_qemu

    # QEMU is asked for its version while numpy is imported.
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(find_qemu, qemu_name, need=name.tools)
        from chainlift.cli.byte_progress import byte_progress
        from chainlift.cli.disk import describe_switch, say_tidied
        from chainlift.lift.record.manifest import write_text
        from chainlift.lift.verbs import squash
        from chainlift.units import counted, format_bytes

    with (
        name.open(found.result(), by_monitor=False, directory=lift_dir) as disk,
        byte_progress("squashing and comparing" if content or delete_layers else "squashing") as progress,
    ):
        done = squash(
            disk,
            onto=onto,
            drop_bitmaps=drop_bitmaps,
            delete_layers_in=[disk.image.parent, *search] if delete_layers else None,
            content=content,
            clean=clean,
            parent=lift_dir,
            search=search,
            rate_bytes_per_s=rate,
            progress=progress,
        )
    manifest, deletion = done.manifest, done.deletion
    if as_json:
        click.echo(write_text(manifest), nl=False)
    else:
        shared = f", {format_bytes(manifest.cloned_bytes)} shared" if manifest.cloned_bytes else ""
        verb = "is" if len(manifest.layers) == 1 else "are"
        click.echo(
            f"{disk.image}: {counted(len(manifest.layers), 'layer')} {verb} one now, "
            f"{format_bytes(manifest.copied_bytes)} copied{shared}{describe_switch(disk)}"
        )
    say_tidied(done.tidied, asked=clean)
    if deletion is not None:
        if deletion.searched:
            click.echo(f"chainlift: {deletion.searched}", err=True)
        for kept in deletion.kept:
            click.echo(f"chainlift: kept {kept.path}: {kept.why}", err=True)
        click.echo(
            f"deleted {len(deletion.deletable)} of {counted(len(manifest.layers), 'replaced layer')}", err=as_json
        )
