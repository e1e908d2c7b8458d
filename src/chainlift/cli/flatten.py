"""``chainlift flatten``: a whole chain as one image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

import click

from chainlift.cli.options import OUTPUT_FILE

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("image", type=click.Path())
@click.argument("out", type=OUTPUT_FILE)
@click.option("-O", "--output-format", "file_format", type=click.Choice(("qcow2", "raw")), default="qcow2",
              show_default=True, help="Format of OUT.")  # fmt: skip
@click.option("--compress", type=click.Choice(("zlib", "zstd")), help="Store clusters compressed.")
@click.option("--overwrite", is_flag=True, help="Replace the file OUT, or write onto the block device OUT.")
def command(image: str, out: Path, file_format: str, compress: str | None, overwrite: bool) -> None:
    """Write what a guest reads from IMAGE to OUT, an image that stands alone.

    IMAGE and its layers stay as they are. Blocks are shared where the file system has reflinks, else copied. OUT gets
    the owner and the mode of IMAGE. A block device must be large enough and unused; what it has behind the image stays.
    """
    if compress is not None and file_format == "raw":
        raise click.UsageError("--compress goes with -O qcow2: a raw image cannot be compressed")
    from chainlift.cli.byte_progress import byte_progress
    from chainlift.errors import one_line
    from chainlift.lift.flatten import flatten
    from chainlift.units import format_bytes

    with byte_progress("flattening") as progress:
        done = flatten(
            image,
            out,
            file_format=cast("Literal['qcow2', 'raw']", file_format),
            compress=cast("Literal['zlib', 'zstd'] | None", compress),
            overwrite=overwrite,
            progress=progress,
        )
    shared = f", {format_bytes(done.copied.cloned_bytes)} shared" if done.copied.cloned_bytes else ""
    click.echo(
        f"{one_line(str(out))}: {format_bytes(done.file_bytes)} for a disk of {format_bytes(done.virtual_size_bytes)}, "
        f"{format_bytes(done.copied.copied_bytes)} copied{shared}"
    )
