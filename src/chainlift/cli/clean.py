"""``chainlift clean``: what killed runs and disks that are gone have left in a running QEMU."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--qmp", type=click.Path(path_type=Path), metavar="SOCKET", help="The running QEMU on this socket.")
@click.option("--libvirt", metavar="DOMAIN", help="The running QEMU of this libvirt domain.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def command(qmp: Path | None, libvirt: str | None, as_json: bool) -> None:
    """Put a running QEMU in order: close what chainlift has left open there and nobody needs.

    What a run that was killed has begun is finished or undone; with --libvirt its copy is ended, and what it made and
    never used is removed. Lifts that are in use stay.
    """
    from chainlift.cli.json_output import print_json
    from chainlift.errors import one_line
    from chainlift.host.virsh import Domain
    from chainlift.lift.domain.clean import clean_domain
    from chainlift.lift.live.clean import clean

    if (qmp is None) == (libvirt is None):
        raise click.UsageError("say which QEMU: --qmp SOCKET or --libvirt DOMAIN, one of them")
    done = clean(qmp) if qmp is not None else clean_domain(Domain(libvirt or ""))
    if as_json:
        refused = {str(image): why for image, why in done.refused.items()}
        looked_at = list(map(str, done.looked_at))
        print_json({"removed": done.removed, "undone": done.undone, "disks": looked_at, "refused": refused})
        return
    for why in done.refused.values():
        click.echo(one_line(f"chainlift: left alone: {why}"), err=True)
    if libvirt is not None and not done.removed:
        click.echo(one_line("; ".join(done.undone) or "there was nothing to put in order"))
        return
    click.echo(f"removed nodes: {', '.join(done.removed) or 'none, there was nothing to remove'}")
