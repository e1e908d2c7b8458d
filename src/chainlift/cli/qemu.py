"""``chainlift qemu``: the QEMUs that can be measured."""

from __future__ import annotations

import click

from chainlift.cli.group import Group


@click.group(cls=Group)
def command() -> None:
    """QEMUs beside the host's own: those of other Debian releases, and copies without one function.

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
@click.argument("qemu", metavar="QEMU")
@click.argument("function", metavar="FUNCTION")
def ablate(qemu: str, function: str) -> None:
    """Copy a QEMU and let FUNCTION (bdrv_is_inserted) return true at once in the copy.

    What a copy gains over its original is what the function costs. QEMU is `host`, `debian:SUITE` or a path; it is not
    changed. The copy is refused where its code is not what is known, and is kept where each of its programs reads a
    chain right. It is then `QEMU,without=FUNCTION` wherever a QEMU is named. It is made for measuring, not for use: a
    CD drive of the host would seem to have a medium.
    """
    from chainlift.qemu.ablated import ablate
    from chainlift.qemu.find import find_qemu

    made = ablate(find_qemu(qemu, need=["img"]), function, lambda text: click.echo(text, err=True))
    click.echo(f"{made.label}: QEMU {made.version_text}")


@command.command()
@click.argument("names", metavar="QEMU...", nargs=-1, required=True)
def remove(names: tuple[str, ...]) -> None:
    """Delete unpacked releases, and copies without a function."""
    from chainlift.qemu.ablated import remove_ablated
    from chainlift.qemu.binary import WITHOUT
    from chainlift.qemu.releases import remove_release

    for name in names:
        (remove_ablated if WITHOUT in name else remove_release)(name)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List the host's QEMU, the unpacked ones and the copies without a function, with what matters to chainlift.

    blockdev-reopen: a chain can be lifted under a running VM. vmdk: an index can be read. symbols: where the names of a
    profile come from ("dynamic symbols": static functions stay without a name).
    """
    from chainlift.cli.json_output import print_json
    from chainlift.cli.table import print_table
    from chainlift.errors import MissingToolError
    from chainlift.profiling.symbols import load_symbols
    from chainlift.qemu.ablated import ablated_names
    from chainlift.qemu.features import probe_features
    from chainlift.qemu.find import find_qemu
    from chainlift.qemu.releases import added_releases

    qemus = added_releases()
    try:
        qemus.insert(0, find_qemu("host"))
    except MissingToolError as error:
        click.echo(f"chainlift: {error}", err=True)
    for name in ablated_names():
        try:
            qemus.append(find_qemu(name))
        except MissingToolError as error:
            click.echo(f"chainlift: {error}", err=True)
    rows = []
    for qemu in qemus:
        features = probe_features(qemu)
        rows.append(
            {
                "qemu": qemu.label,
                "version": qemu.version_text,
                "blockdev_reopen": features.blockdev_reopen,
                "vmdk": features.vmdk,
                "symbols": load_symbols(qemu.path("system")).source,
                "path": str(qemu.path("system")),
            }
        )
    if as_json:
        print_json({"qemus": rows})
        return
    table = [
        (
            str(row["qemu"]),
            str(row["version"]).partition(" ")[0],
            *("yes" if row[key] else "no" for key in ("blockdev_reopen", "vmdk")),
            str(row["symbols"]),
        )
        for row in rows
    ]
    print_table("", ("qemu", "version", "blockdev-reopen", "vmdk", "symbols"), table)
