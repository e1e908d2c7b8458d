"""``chainlift restore``: undo a lift."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from chainlift.cli.live import live_options, need_image

if TYPE_CHECKING:
    from pathlib import Path

    from chainlift.lift.live.libvirt import Domain


@click.command()
@click.argument("image", type=click.Path(), required=False)
@click.option("--clean", is_flag=True, help="Remove the lift's files, too.")
@click.option("--qemu", "qemu_name", default="host", metavar="QEMU", help="Whose qemu-img switches the pointer.")
@live_options
def command(
    image: str | None, clean: bool, qemu_name: str, qmp: Path | Domain | None, device: str | None, node: str | None
) -> None:
    """Make IMAGE name the backing file again that it named before it was lifted.

    With --qmp the disk is switched back while its VM runs; do so before a live migration, which an index prevents.
    """
    from chainlift.lift.restore import restore_lift
    from chainlift.qemu.binary import find_qemu

    switched = ""
    if qmp is not None:
        from chainlift.cli.live import describe_switch, session
        from chainlift.lift.live.lifts import restore_live

        with session(qmp, device=device, node=node, image=image) as running:
            image = str(running.image)
            result = restore_live(running, clean=clean)
        manifest, switched = result.manifest, f"; {describe_switch(result)}"
    else:
        image = need_image(image, device, node)
        manifest = restore_lift(image, find_qemu(qemu_name, need=["img"]), clean=clean)
    removed = ", and its lift is removed" if clean else ""
    click.echo(f"{image}: stands on {manifest.original.name} again{removed}{switched}")
