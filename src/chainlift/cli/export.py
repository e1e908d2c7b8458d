"""``chainlift export``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from chainlift.cli.options import OUTPUT_FILE

if TYPE_CHECKING:
    from pathlib import Path


@click.command("export")
@click.argument("image")
@click.option("--at", metavar="LAYER", help="Serve this layer of the chain, by its path or file name; else IMAGE.")
@click.option("--socket", type=OUTPUT_FILE, metavar="PATH", help="Serve it by NBD, on a UNIX socket that is made here.")
@click.option("--fuse", type=OUTPUT_FILE, metavar="FILE", help="Serve it as a raw file, which is made here.")
@click.option("--qemu", "spec", default="host", show_default=True, help="The QEMU whose storage daemon serves.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when it is served.")
def command(image: str, at: str | None, socket: Path | None, fuse: Path | None, spec: str, as_json: bool) -> None:
    """Serve a snapshot read-only, as fast as one layer, until Ctrl-C or SIGTERM: for nbdcopy, qemu-img, guestmount.

    A line on standard output says when it is served. The chain is not touched, and may be in use: under a running VM
    name a layer below the active one with --at. QEMU's storage daemon reads it through an index in a temporary
    directory; when it ends nothing is left. Meanwhile nobody can write to these layers (commit, delete by libvirt).
    """
    from chainlift.cli.json_output import print_json
    from chainlift.errors import one_line
    from chainlift.host import interrupts
    from chainlift.lift.export import export
    from chainlift.qemu.find import find_qemu
    from chainlift.units import counted, format_bytes

    if (socket is None) == (fuse is None):
        raise click.UsageError("say where: --socket PATH or --fuse FILE, one of them")
    qemu = find_qemu(spec, need=["storage-daemon"])
    with export(image, at=at, socket=socket, fuse=fuse, qemu=qemu) as served:
        if served.slow is not None:
            click.echo(f"chainlift: no faster than the chain itself: {one_line(served.slow)}", err=True)
        where = served.uri or str(fuse)
        if as_json:
            said = {name: value for name, value in vars(served).items() if name != "_daemon"}
            print_json({**said, "file": None if fuse is None else str(fuse)}, in_one_line=True)
        else:
            what = f"{format_bytes(served.virtual_size_bytes)} of {counted(served.layers, 'layer')}"
            click.echo(one_line(f"{served.path}: {what} at {where} until Ctrl-C"))
        try:
            served.wait()
        except KeyboardInterrupt:
            interrupts.too_late()  # whoever asks a server to end gets what he wants
