"""``chainlift index``: make a long chain read like one image, without copying it."""

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
@click.option(
    "--copy-budget", type=SIZE, metavar="SIZE",
    help="Copy at most so much, for fewer extents. Without: nothing; with --qmp, what it takes for few, up to 1 GiB.",
)  # fmt: skip
@content_option
@click.option("--clean", is_flag=True, help="Remove the lift that this one replaces, where nobody else needs it.")
@search_option
@click.option("--drop-bitmaps", is_flag=True, help="Go on although layers have persistent bitmaps.")
@lift_dir_option
@force_option
@qemu_option
@click.option("--json", "as_json", is_flag=True, help="Print the lift's record as JSON.")
def command(
    name: DiskName,
    copy_budget: int | None,
    content: bool,
    clean: bool,
    search: tuple[Path, ...],
    drop_bitmaps: bool,
    lift_dir: Path | None,
    qemu_name: str,
    as_json: bool,
) -> None:
    """Build the index of everything under IMAGE and switch IMAGE to it.

    IMAGE.lift/ gets one merged table that points into the layers where they lie; no data is copied unless the format
    asks for it or --copy-budget allows it. No snapshot is lost: `chainlift restore IMAGE` goes back.

    With --qmp the disk is switched while its VM runs; IMAGE, --device or --node say which disk, if there are several.
    """
    if search and not clean:
        raise click.UsageError("--search goes with --clean")
    from concurrent.futures import ThreadPoolExecutor

    from chainlift.qemu.find import find_qemu

    # QEMU is asked for its version while numpy is imported: each takes as long as merging the tables of 100 layers.
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(find_qemu, qemu_name, need=name.tools)
        from chainlift.cli.byte_progress import byte_progress
        from chainlift.cli.disk import describe_switch, say_tidied
        from chainlift.lift.build.index import GENTLE_EXTENTS, gentle_budget
        from chainlift.lift.record.manifest import write_text
        from chainlift.lift.verbs import index
        from chainlift.units import counted, format_bytes

    with (
        name.open(found.result(), by_monitor=True) as disk,
        byte_progress("copying and comparing" if content else "copying", copy_budget or 0) as progress,
    ):
        done = index(
            disk,
            copy_budget_bytes=copy_budget,
            drop_bitmaps=drop_bitmaps,
            content=content,
            clean=clean,
            parent=lift_dir,
            search=search,
            progress=progress,
        )
    manifest = done.manifest
    if name.libvirt is not None:
        _warn_of_limits(name.libvirt, disk.image)
    if as_json:
        click.echo(write_text(manifest), nl=False)
    else:
        shorter = "fewer extents (--copy-budget) or a squash make it shorter"
        seen = sum(layer.visible_clusters > 0 for layer in manifest.layers)
        click.echo(
            f"{disk.image}: an index of {counted(manifest.extents, 'extent')} over "
            f"{counted(len(manifest.layers), 'layer')} ({seen} can be seen), "
            f"{format_bytes(manifest.copied_bytes)} copied{describe_switch(disk, shorter=shorter)}"
        )
    say_tidied(done.tidied, asked=clean)
    if manifest.extents > GENTLE_EXTENTS and not as_json:
        budget = gentle_budget([layer.visible_clusters for layer in manifest.layers]) * manifest.cluster_size_bytes
        click.echo(
            f"chainlift: --copy-budget {-(-budget >> 20)}M would leave {GENTLE_EXTENTS} extents: faster reads, less "
            "memory in QEMU; chainlift plan says how long it takes",
            err=True,
        )


def _warn_of_limits(domain: str, image: Path) -> None:
    from contextlib import suppress

    from chainlift.errors import ChainliftError
    from chainlift.host.virsh import Domain
    from chainlift.lift.domain.chain_limit import warn_of_index

    with suppress(ChainliftError):  # the index is in use, whatever happens here
        if (warning := warn_of_index(Domain(domain), image)) is not None:
            click.echo(f"chainlift: warning: {warning}", err=True)
