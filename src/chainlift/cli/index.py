"""``chainlift index``: make a long chain read like one image, without copying it."""

from __future__ import annotations

import click

from chainlift.cli.sizes import SIZE


@click.command()
@click.argument("image", type=click.Path())
@click.option("--copy-budget", type=SIZE, default=0, metavar="SIZE", help="Copy at most so much, for fewer extents.")
@click.option("--qemu", "qemu_name", default="host", metavar="QEMU", help="Whose qemu-img switches the pointer.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def command(image: str, copy_budget: int, qemu_name: str, as_json: bool) -> None:
    """Build the index of everything under IMAGE and switch IMAGE to it.

    IMAGE.lift/ gets one merged table that points into the layers where they lie; no data is copied unless the format
    asks for it or --copy-budget allows it. No snapshot is lost: `chainlift restore IMAGE` goes back.
    """
    from chainlift.cli.byte_progress import byte_progress
    from chainlift.lift.lifting import lift_index
    from chainlift.lift.manifest import write_text
    from chainlift.qemu.binary import find_qemu
    from chainlift.units import format_bytes

    qemu = find_qemu(qemu_name, need=["img"])
    with byte_progress("copying", copy_budget) as progress:
        manifest = lift_index(image, qemu, copy_budget_bytes=copy_budget, progress=progress)
    if as_json:
        click.echo(write_text(manifest), nl=False)
        return
    seen = sum(layer.visible_clusters > 0 for layer in manifest.layers)
    click.echo(
        f"{image}: an index of {manifest.extents} extents over {len(manifest.layers)} layers ({seen} can be seen), "
        f"{format_bytes(manifest.copied_bytes)} copied"
    )
