"""``chainlift restore``: undo a lift."""

from __future__ import annotations

import click


@click.command()
@click.argument("image", type=click.Path())
@click.option("--clean", is_flag=True, help="Remove the lift's files, too.")
@click.option("--qemu", "qemu_name", default="host", metavar="QEMU", help="Whose qemu-img switches the pointer.")
def command(image: str, clean: bool, qemu_name: str) -> None:
    """Make IMAGE name the backing file again that it named before it was lifted."""
    from chainlift.lift.restore import restore_lift
    from chainlift.qemu.binary import find_qemu

    manifest = restore_lift(image, find_qemu(qemu_name, need=["img"]), clean=clean)
    removed = ", and its lift is removed" if clean else ""
    click.echo(f"{image}: stands on {manifest.original.name} again{removed}")
