"""``chainlift restore``: undo a lift."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from chainlift.cli.disk import content_option, disk_options, force_option, qemu_option, search_option

if TYPE_CHECKING:
    from pathlib import Path

    from chainlift.cli.disk import DiskName


@click.command()
@disk_options
@click.option(
    "--lift", "only", type=click.Path(), multiple=True, metavar="FILE",
    help="Only this lift, named by its file or by the image that stands on it; several times for several.",
)  # fmt: skip
@click.option("--clean", is_flag=True, help="Remove the lifts' files, too, where nobody else needs them.")
@click.option("--dry-run", is_flag=True, help="Only say which lifts would be taken out.")
@content_option
@search_option
@force_option
@qemu_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    name: DiskName,
    only: tuple[str, ...],
    clean: bool,
    dry_run: bool,
    content: bool,
    search: tuple[Path, ...],
    qemu_name: str,
    as_json: bool,
) -> None:
    """Take every lift out of the chain of IMAGE: each image names what it named before it was lifted.

    Lifts are found by what the images stand on, also under snapshots that were taken since; names of files and
    directories play no part. With --qmp or --libvirt the disk is switched back while its VM runs; do so before a live
    migration, which an index prevents.
    """
    if search and not clean:
        raise click.UsageError("--search goes with --clean")
    from chainlift.cli.byte_progress import byte_progress
    from chainlift.cli.disk import describe_switch, say_tidied
    from chainlift.cli.json_output import print_json
    from chainlift.errors import one_line
    from chainlift.lift.verbs import restore
    from chainlift.qemu.find import find_qemu

    with name.open(find_qemu(qemu_name, need=name.tools)) as disk, byte_progress("comparing") as progress:
        done = restore(disk, only=only, clean=clean, dry_run=dry_run, content=content, search=search, progress=progress)
        switched = "" if dry_run else describe_switch(disk)
    if not done.found and not as_json:
        click.echo(f"{disk.image}: is not lifted{'' if done.tidied.kept else '; what was left of lifts is removed'}")
    if as_json:
        rows = [
            {
                "image": str(entry.change.owner),
                "kind": entry.lift.manifest.kind,
                "lift": str(entry.lift.file),
                "backing": {"name": entry.change.new.name, "format": entry.change.new.format},
            }
            for entry in done.found
        ]
        print_json({"restored": not dry_run, "lifts": rows})
    else:
        for entry in done.found:
            if getattr(disk, "outcome", "") and disk.image != entry.change.owner:
                # No image was changed: copies, and a new overlay, stand in for those that stood on the lift.
                text = f"{disk.image}: goes through {entry.change.new.name} again, not through {entry.lift.file}"
            else:
                does = "would stand" if dry_run else "stands"
                text = f"{entry.change.owner}: {does} on {entry.change.new.name} again, not on {entry.lift.file}"
            click.echo(text + switched)
            switched = ""
    for warning in done.warnings:
        click.echo(f"chainlift: warning: {one_line(warning)}", err=True)
    say_tidied(done.tidied, asked=clean)
