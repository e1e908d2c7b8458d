"""``chainlift squash``: the middle of a chain as one layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from chainlift.cli.live import live_options, need_image
from chainlift.cli.sizes import SIZE

if TYPE_CHECKING:
    from chainlift.lift.live.libvirt import Domain


@click.command()
@click.argument("image", type=click.Path(), required=False)
@click.option("--onto", type=click.Path(), metavar="LAYER", help="Squash down to this layer; without: to the base.")
@click.option("--delete-layers", is_flag=True, help="Delete the replaced layers after a comparison of every byte.")
@click.option(
    "--search", type=click.Path(path_type=Path, exists=True, file_okay=False), multiple=True, metavar="DIR",
    help="Look here, too, for other images that use the layers; without: in IMAGE's directory.",
)  # fmt: skip
@click.option("--rate", type=SIZE, metavar="SIZE", help="With --qmp: copy at most so much a second.")
@click.option("--content", is_flag=True, help="With a running QEMU: compare all before the switch, not only a sample.")
@click.option("--qemu", "qemu_name", default="host", metavar="QEMU", help="Whose qemu-img switches the pointer.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
@live_options
def command(
    image: str | None,
    onto: str | None,
    delete_layers: bool,
    search: tuple[Path, ...],
    rate: int | None,
    content: bool,
    qemu_name: str,
    as_json: bool,
    qmp: Path | Domain | None,
    device: str | None,
    node: str | None,
) -> None:
    """Make one ordinary layer of everything between IMAGE and its base, and switch IMAGE to it.

    Blocks are shared where the file system has reflinks (XFS, Btrfs), else copied. `chainlift restore IMAGE` goes
    back, unless --delete-layers was given. With --qmp the disk is switched while its VM runs.
    """
    from chainlift.cli.byte_progress import byte_progress
    from chainlift.lift.lifting import lift_squash
    from chainlift.lift.record.manifest import write_text
    from chainlift.qemu.binary import find_qemu
    from chainlift.units import format_bytes

    switched, deletion = "", None
    if qmp is not None:
        from chainlift.cli.live import describe_switch, session
        from chainlift.lift.lifting import prepare_squash
        from chainlift.lift.live.lifts import lift_live

        if delete_layers:
            raise click.UsageError("--delete-layers goes with an image at rest: a VM might still have to go back")
        qemu = find_qemu(qemu_name, need=["storage-daemon"])
        with (
            session(qmp, device=device, node=node, image=image) as running,
            byte_progress("squashing and comparing" if content else "squashing") as progress,
        ):
            image = str(running.image)
            prepared = prepare_squash(image, onto=onto, rate_bytes_per_s=rate, progress=progress)
            result = lift_live(running, prepared, qemu=qemu, content=content, progress=progress)
        manifest, switched = result.manifest, f"; {describe_switch(result)}"
    else:
        image = need_image(image, device, node, content=content)
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
            f"{switched}"
        )
    if deletion is not None:
        for kept in deletion.kept:
            click.echo(f"chainlift: kept {kept.path}: {kept.why}", err=True)
        click.echo(f"deleted {len(deletion.deletable)} of {len(manifest.layers)} replaced layers", err=as_json)
