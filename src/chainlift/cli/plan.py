"""``chainlift plan``: what each lift would cost and gain."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from chainlift.cli.disk import disk_options

if TYPE_CHECKING:
    from chainlift.cli.disk import DiskName


@click.command()
@disk_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(name: DiskName, as_json: bool) -> None:
    """Say what index, squash and flatten would do to this very chain, and which one to take.

    Nothing is changed. Seconds are at a copy rate measured with 64 MiB in a file without a name beside IMAGE.
    With --qmp, what speaks against a lift under the running VM is an error, as it would be for the lift.
    """
    from chainlift.cli.table import print_table
    from chainlift.errors import one_line
    from chainlift.lift.plan import plan as plan_lift
    from chainlift.units import format_bytes, format_seconds

    with name.open() as disk:
        if name.is_running:
            disk.check()
        plan = plan_lift(disk, named=name.as_options)
    if as_json:
        click.echo(json.dumps(asdict(plan), indent=1))
        return
    rows = [
        (
            choice.kind,
            str(choice.depth),
            str(choice.files),
            format_bytes(choice.copied_bytes),
            "-" if choice.copy_s is None else format_seconds(0 if plan.reflinks else choice.copy_s),
            format_bytes(choice.memory_bytes),
        )
        for choice in plan.choices
    ]
    rate = "" if plan.copy_bytes_per_s is None else f", copies at {format_bytes(plan.copy_bytes_per_s)}/s"
    print_table(
        f"{plan.image}: {plan.length} layers over the base, {plan.visible_layers} can be seen under it",
        ("lift", "depth", "files", "copied", "takes", "QEMU's memory"),
        rows,
        numeric=range(1, 6),
        note=f"{'reflinks' if plan.reflinks else 'no reflinks'}{rate}, {format_bytes(plan.free_bytes)} free; "
        "memory is an estimate with the whole disk read",
    )
    for reason in dict.fromkeys(reason for choice in plan.choices for reason in choice.against):
        kinds = ", ".join(choice.kind for choice in plan.choices if reason in choice.against)
        click.echo(one_line(f"{kinds}: {reason}"))
    command = next((choice.command for choice in plan.choices if choice.kind == plan.recommended), None)
    click.echo(one_line(f"recommended: {command or 'leave it as it is'} ({plan.because})"))
