"""``chainlift squash``: the middle of a chain as one layer."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("image", type=click.Path())
@click.option("--onto", type=click.Path(), metavar="LAYER", help="Squash down to this layer; without: to the base.")
@click.option("--delete-layers", is_flag=True, help="Delete the replaced layers after a comparison of every byte.")
@click.option(
    "--search", type=click.Path(path_type=Path, exists=True, file_okay=False), multiple=True, metavar="DIR",
    help="Look here, too, for other images that use the layers; without: in IMAGE's directory.",
)  # fmt: skip
@click.option("--qemu", "qemu_name", default="host", metavar="QEMU", help="Whose qemu-img switches the pointer.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def command(
    image: str, onto: str | None, delete_layers: bool, search: tuple[Path, ...], qemu_name: str, as_json: bool
) -> None:
    """Make one ordinary layer of everything between IMAGE and its base, and switch IMAGE to it.

    Blocks are shared where the file system has reflinks (XFS, Btrfs), else copied. `chainlift restore IMAGE` goes
    back, unless --delete-layers was given.
    """
    from chainlift.cli.byte_progress import byte_progress
    from chainlift.lift.lifting import lift_squash
    from chainlift.lift.manifest import write_text
    from chainlift.qemu.binary import find_qemu
    from chainlift.units import format_bytes

    qemu = find_qemu(qemu_name, need=["img"])
    directories = [Path(image).absolute().parent, *search] if delete_layers else None
    with byte_progress("squashing") as progress:
        manifest, deletion = lift_squash(image, qemu, onto=onto, delete_in=directories, progress=progress)
    if as_json:
        click.echo(write_text(manifest), nl=False)
    else:
        shared = f", {format_bytes(manifest.cloned_bytes)} shared" if manifest.cloned_bytes else ""
        click.echo(
            f"{image}: {len(manifest.layers)} layers are one now, {format_bytes(manifest.copied_bytes)} copied{shared}"
        )
    if deletion is not None:
        for kept in deletion.kept:
            click.echo(f"chainlift: kept {kept.path}: {kept.why}", err=True)
        click.echo(f"deleted {len(deletion.deletable)} of {len(manifest.layers)} replaced layers", err=as_json)
