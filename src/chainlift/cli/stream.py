"""``chainlift stream``: QEMU's block-stream, made fast by an index."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from chainlift.cli.disk import disk_options
from chainlift.cli.sizes import SIZE

if TYPE_CHECKING:
    from chainlift.cli.disk import DiskName


@click.command()
@disk_options
@click.option("--rate", type=SIZE, default=0, metavar="SIZE", help="Copy at most so much a second.")
@click.option("--drop-bitmaps", is_flag=True, help="Go on although layers have persistent bitmaps.")
@click.option("--clean", is_flag=True, help="Remove the lift that the image stood on, where nobody else needs it.")
@click.option("--qemu", "qemu_name", default="host", metavar="QEMU", help="Whose storage daemon compares a sample.")
def command(name: DiskName, rate: int, drop_bitmaps: bool, clean: bool, qemu_name: str) -> None:
    """Stream all layers of a running disk into its active one, several times faster than QEMU alone.

    The disk is switched to an index first, so that QEMU's job does not walk the chain for every piece. All snapshots
    end up in one image that stands alone; the layers stay where they are, unused.
    """
    from chainlift.cli.byte_progress import byte_progress
    from chainlift.cli.disk import say_tidied
    from chainlift.lift.live.disk import RunningDisk
    from chainlift.lift.live.stream import stream_live
    from chainlift.qemu.find import find_qemu
    from chainlift.units import format_bytes, format_seconds

    if not name.is_running:
        raise click.UsageError("Missing option '--qmp' or '--libvirt': for an image at rest, see chainlift flatten")
    qemu = find_qemu(qemu_name, need=["storage-daemon"])
    with name.open(qemu, by_monitor=True) as running, byte_progress("streaming") as show:
        assert isinstance(running, RunningDisk)
        result = stream_live(
            running.session,
            qemu=qemu,
            rate_bytes_per_s=rate,
            drop_bitmaps=drop_bitmaps,
            clean=clean,
            progress=None if show is None else lambda done, _: show(done),
        )
        click.echo(
            f"{running.image}: stands alone; {format_bytes(result.bytes)} streamed in {format_seconds(result.job_s)}, "
            f"{format_seconds(result.total_s)} with the index"
        )
    say_tidied(result.tidied, asked=clean)
