"""``chainlift calibrate``: the parameters of the cost model, measured on this host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from chainlift.qemu.binary import Tool


@click.command()
@click.option(
    "--qemu",
    "qemu_specs",
    metavar="Q",
    multiple=True,
    default=("host",),
    show_default=True,
    help="host, debian:SUITE, or a path; may be given several times.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the parameters as JSON.")
def command(qemu_specs: tuple[str, ...], as_json: bool) -> None:
    """Measure each step of a QEMU's work on this host, for `cost`, `inspect`, `plan` and `survey`.

    Takes about a minute and 1.2 GB of temporary space a QEMU. What is found is kept in chainlift's cache, by
    the QEMU's build, and takes the place of the figures that chainlift brings along. Better on a quiet host.
    """
    from dataclasses import asdict

    from chainlift.cli.json_output import print_json
    from chainlift.cli.progress import TerminalProgress
    from chainlift.cli.table import print_table
    from chainlift.cost.calibrate import calibrate
    from chainlift.cost.store import keep
    from chainlift.qemu.bench import require_terminal
    from chainlift.qemu.find import find_qemu

    needed: list[Tool] = ["img"]
    qemus = [find_qemu(spec, need=needed) for spec in dict.fromkeys(qemu_specs)]
    require_terminal()
    found = []
    for qemu in qemus:
        with TerminalProgress() as progress:
            progress.stage(f"calibrating QEMU {qemu.version_text}")

            def told(done: int, total: int, name: str, progress: TerminalProgress = progress) -> None:
                if not done:
                    progress.stage("measuring", total)
                progress.step(done, name)

            parameters = calibrate(qemu, told)
        found.append((parameters, keep(parameters)))
    if as_json:
        print_json({"calibrations": [asdict(parameters) for parameters, _ in found]})
        return
    for parameters, path in found:
        values = asdict(parameters)
        steps = [(name, _told(name, value)) for name, value in values.items() if isinstance(value, float)]
        print_table(
            f"QEMU {parameters.qemu} on this host",
            ("a step of its work", "takes"),
            steps,
            numeric=(1,),
            note=f"kept in {path}; reads are foreseen within {parameters.spread.read:.0%}, memory within "
            f"{parameters.spread.memory:.0%}, opening within {parameters.spread.open:.0%}",
        )


def _told(name: str, value: float) -> str:
    from chainlift.units import format_bytes, format_seconds

    if name.endswith("_s"):
        return f"{value * 1e12:.1f} ps" if 0 < value < 1e-10 else format_seconds(value)
    return format_bytes(value) if name.endswith("_bytes") else f"{value:,.0f}"
