"""``chainlift plan``: what each lift would cost and gain."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING

import click

from chainlift.cli.disk import disk_options
from chainlift.cli.parameters import parameters_at_hand

if TYPE_CHECKING:
    from chainlift.cli.disk import DiskName
    from chainlift.cost import Figure, Lift, Parameters
    from chainlift.lift.plan import Choice, Plan

_DAY_S = 86_400


@click.command()
@disk_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(name: DiskName, as_json: bool) -> None:
    """Say what index, squash and flatten would do to this very chain, and which one to take.

    Nothing is changed. Seconds are at a copy rate measured with 64 MiB in a file without a name beside IMAGE. "4 KiB
    read" is the CPU time that one is foreseen to take then (see `chainlift cost`); a lift "pays off" from so many reads
    a second on, which give back within a day what its copy takes.
    With --qmp, what speaks against a lift under the running VM is an error, as it would be for the lift.
    """
    from chainlift.cli.json_output import print_json
    from chainlift.cli.table import print_table
    from chainlift.errors import one_line
    from chainlift.lift.plan import plan as plan_lift
    from chainlift.units import counted, format_bytes, format_seconds

    with name.open() as disk:
        if name.is_running:
            disk.check()
        plan = plan_lift(disk, named=name.as_options)
    parameters = parameters_at_hand()
    reads = _foresee(plan, parameters)
    paying = {choice.kind: _pays_off(plan, choice, reads) for choice in plan.choices}
    if as_json:
        entries = [
            {
                **asdict(choice),
                "read_4k_cpu_s": None if (read := reads[choice.kind]) is None else read.value,
                "read_4k_cpu_s_low": None if read is None else read.low,
                "read_4k_cpu_s_high": None if read is None else read.high,
                "pays_off_reads_per_s": paying[choice.kind],
            }
            for choice in plan.choices
        ]
        whole = {f.name: getattr(plan, f.name) for f in fields(plan) if f.name not in ("choices", "below")}
        print_json({**whole, "choices": entries, "cost_parameters": None if parameters is None else parameters.origin})
        return
    rows = [
        (
            choice.kind,
            str(choice.depth),
            str(choice.files),
            format_bytes(choice.copied_bytes),
            "-" if choice.copy_s is None else format_seconds(0 if plan.reflinks else choice.copy_s),
            format_bytes(choice.memory_bytes),
            "not known" if (read := reads[choice.kind]) is None else format_seconds(read.value),
            "-" if (rate := paying[choice.kind]) is None else f"{rate:.2g} /s" if rate else "at once",
        )
        for choice in plan.choices
    ]
    cpu = "" if parameters is None else f"; the CPU time of reads: {parameters.origin}"
    copies = "" if plan.copy_bytes_per_s is None else f", copies at {format_bytes(plan.copy_bytes_per_s)}/s"
    print_table(
        f"{plan.image}: {counted(plan.length, 'layer')} over the base, {plan.visible_layers} can be seen under it",
        ("lift", "depth", "files", "copied", "takes", "QEMU's memory", "4 KiB read", "pays off"),
        rows,
        numeric=range(1, 8),
        note=f"{'reflinks' if plan.reflinks else 'no reflinks'}{copies}, {format_bytes(plan.free_bytes)} free; "
        f"memory is an estimate with the whole disk read{cpu}",
    )
    for reason in dict.fromkeys(reason for choice in plan.choices for reason in choice.against):
        kinds = ", ".join(choice.kind for choice in plan.choices if reason in choice.against)
        click.echo(one_line(f"{kinds}: {reason}"))
    command = next((choice.command for choice in plan.choices if choice.kind == plan.recommended), None)
    click.echo(one_line(f"recommended: {command or 'leave it as it is'} ({plan.because})"))


def _foresee(plan: Plan, parameters: Parameters | None) -> dict[str, Figure | None]:
    """Return what a read of 4 KiB takes of CPU after each choice."""
    if parameters is None:
        return {choice.kind: None for choice in plan.choices}
    from chainlift.cost import predict, shape_of

    shape = shape_of(plan.below).under_an_overlay()
    reads: dict[str, Figure | None] = {}
    for choice in plan.choices:
        lift: Lift = "index" if choice.kind == "index with a budget" else choice.kind
        # Of the files of an index three are its image, its table's descriptor and its table.
        reads[choice.kind] = predict(shape, parameters, lift, extents=max(1, choice.files - 3)).read_4k_cpu_s
    return reads


def _pays_off(plan: Plan, choice: Choice, reads: dict[str, Figure | None]) -> float | None:
    """Return the reads a second from which on a lift gives back within a day what its copy takes; None: never."""
    before, after = reads["none"], reads[choice.kind]
    seconds = 0.0 if plan.reflinks else choice.copy_s
    if before is None or after is None or seconds is None or choice.kind == "none":
        return None
    saved = before.value - after.value
    return seconds / (saved * _DAY_S) if saved > 0 else None
