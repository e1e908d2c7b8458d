"""``chainlift qemu``: the QEMUs that can be measured."""

from __future__ import annotations

import json

import click


@click.group()
def command() -> None:
    """QEMUs of other Debian releases: unpack them beside the host's own, list them, remove them.

    Nothing is installed: an unpacked QEMU lies in chainlift's cache and runs with its own libraries. It is then what
    `--qemu debian:SUITE` means, and what a study's plan names in `qemu = [...]`.
    """


@command.command()
@click.argument("releases", metavar="debian:SUITE...", nargs=-1, required=True)
def add(releases: tuple[str, ...]) -> None:
    """Fetch and unpack the QEMU of Debian releases (about 110 MB each)."""
    from chainlift.qemu.releases import add_release

    for name in releases:
        qemu = add_release(name, lambda text: click.echo(text, err=True))
        click.echo(f"{qemu.label}: QEMU {qemu.version_text}")


@command.command()
@click.argument("releases", metavar="debian:SUITE...", nargs=-1, required=True)
def remove(releases: tuple[str, ...]) -> None:
    """Delete unpacked releases."""
    from chainlift.qemu.releases import remove_release

    for name in releases:
        remove_release(name)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List the host's QEMU and the unpacked ones, with what matters to chainlift.

    blockdev-reopen: a chain can be lifted under a running VM. vmdk: an index can be read. symbols: where the names of a
    profile come from ("dynamic symbols": static functions stay without a name).
    """
    from chainlift.errors import MissingToolError
    from chainlift.qemu.binary import find_qemu
    from chainlift.qemu.features import probe_features
    from chainlift.qemu.releases import added_releases
    from chainlift.qemu.symbols import load_symbols

    qemus = added_releases()
    try:
        qemus.insert(0, find_qemu("host"))
    except MissingToolError as error:
        click.echo(f"chainlift: {error}", err=True)
    rows = []
    for qemu in qemus:
        features = probe_features(qemu)
        rows.append(
            {
                "qemu": qemu.label,
                "version": qemu.version_text,
                "blockdev-reopen": features.blockdev_reopen,
                "vmdk": features.vmdk,
                "symbols": load_symbols(qemu.path("system")).source,
                "path": str(qemu.path("system")),
            }
        )
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in ("qemu", "version", "blockdev-reopen", "vmdk", "symbols"):
        table.add_column(column, overflow="fold")
    for row in rows:
        yes_no = ["yes" if row[key] else "no" for key in ("blockdev-reopen", "vmdk")]
        table.add_row(str(row["qemu"]), str(row["version"]), *yes_no, str(row["symbols"]))
    Console().print(table)
