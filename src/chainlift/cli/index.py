"""``chainlift index``: make a long chain read like one image, without copying it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from chainlift.cli.live import live_options, need_image
from chainlift.cli.sizes import SIZE

if TYPE_CHECKING:
    from pathlib import Path

    from chainlift.lift.live.libvirt import Domain


@click.command()
@click.argument("image", type=click.Path(), required=False)
@click.option(
    "--copy-budget", type=SIZE, metavar="SIZE",
    help="Copy at most so much, for fewer extents. Without: nothing; with --qmp, what it takes for few, up to 1 GiB.",
)  # fmt: skip
@click.option("--content", is_flag=True, help="With a running QEMU: compare all before the switch, not only a sample.")
@click.option("--qemu", "qemu_name", default="host", metavar="QEMU", help="Whose qemu-img switches the pointer.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
@live_options
def command(
    image: str | None,
    copy_budget: int | None,
    content: bool,
    qemu_name: str,
    as_json: bool,
    qmp: Path | Domain | None,
    device: str | None,
    node: str | None,
) -> None:
    """Build the index of everything under IMAGE and switch IMAGE to it.

    IMAGE.lift/ gets one merged table that points into the layers where they lie; no data is copied unless the format
    asks for it or --copy-budget allows it. No snapshot is lost: `chainlift restore IMAGE` goes back.

    With --qmp the disk is switched while its VM runs; IMAGE, --device or --node say which disk, if there are several.
    """
    from concurrent.futures import ThreadPoolExecutor

    from chainlift.qemu.binary import find_qemu

    # QEMU is asked for its version while numpy is imported: each takes as long as merging the tables of 100 layers.
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(find_qemu, qemu_name, need=["img"] if qmp is None else ["storage-daemon"])
        from chainlift.cli.byte_progress import byte_progress
        from chainlift.lift.build.index import GENTLE_EXTENTS, gentle_budget
        from chainlift.lift.lifting import lift_index
        from chainlift.lift.record.manifest import write_text
        from chainlift.units import format_bytes
    qemu = found.result()

    switched = ""
    if qmp is not None:
        from chainlift.cli.live import describe_switch, session
        from chainlift.lift.live.lifts import lift_live, prepare_live_index

        with (
            session(qmp, device=device, node=node, image=image) as running,
            byte_progress("copying and comparing" if content else "copying") as progress,
        ):
            image = str(running.image)
            prepared = prepare_live_index(running, copy_budget_bytes=copy_budget, progress=progress)
            result = lift_live(running, prepared, qemu=qemu, content=content, progress=progress)
        manifest, switched = result.manifest, f"; {describe_switch(result)}"
    else:
        image = need_image(image, device, node, content=content)
        with byte_progress("copying", copy_budget or 0) as progress:
            manifest = lift_index(image, qemu, copy_budget_bytes=copy_budget or 0, progress=progress)
    if as_json:
        click.echo(write_text(manifest), nl=False)
        return
    seen = sum(layer.visible_clusters > 0 for layer in manifest.layers)
    click.echo(
        f"{image}: an index of {manifest.extents} extents over {len(manifest.layers)} layers ({seen} can be seen), "
        f"{format_bytes(manifest.copied_bytes)} copied{switched}"
    )
    if manifest.extents > GENTLE_EXTENTS:
        budget = gentle_budget([layer.visible_clusters for layer in manifest.layers]) * manifest.cluster_size_bytes
        click.echo(
            f"chainlift: --copy-budget {-(-budget >> 20)}M would leave {GENTLE_EXTENTS} extents: faster reads, less "
            "memory in QEMU; chainlift plan says how long it takes",
            err=True,
        )
