"""``chainlift plan``: what each lift would cost and gain."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from chainlift.cli.live import live_options, need_image

if TYPE_CHECKING:
    from pathlib import Path

    from chainlift.lift.live.libvirt import Domain


@click.command()
@click.argument("image", type=click.Path(), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@live_options
def command(image: str | None, as_json: bool, qmp: Path | Domain | None, device: str | None, node: str | None) -> None:
    """Say what index, squash and flatten would do to this very chain, and which one to take.

    Nothing is changed. Seconds are at a copy rate measured with 64 MiB in a file without a name beside IMAGE.
    With --qmp, what speaks against a lift under the running VM is an error, as it would be for the lift.
    """
    from chainlift.cli.table import print_table
    from chainlift.errors import one_line
    from chainlift.lift.plan import plan_lift
    from chainlift.units import format_bytes, format_seconds

    if qmp is not None:
        from chainlift.cli.live import session

        with session(qmp, device=device, node=node, image=image) as running:
            image = str(running.image)
    plan = plan_lift(need_image(image, None, None) if qmp else need_image(image, device, node))
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
