"""``chainlift cost``: what a chain costs, foreseen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from chainlift.cli.options import chain_options

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from chainlift.cost import Cost, Figure, Lift
    from chainlift.cost.parameters import Aio

_LIFTS = ("index", "squash", "flatten", "prune", "no-check")
#: Rows of the table: what is said, and the name of the figure.
_ROWS = (
    ("CPU of a read of 4 KiB", "read_4k_cpu_s"),
    ("of 64 KiB", "read_64k_cpu_s"),
    ("of 4 MiB", "read_4m_cpu_s"),
    ("in sequence, of 4 KiB", "sequential_4k_cpu_s"),
    ("of 64 KiB", "sequential_64k_cpu_s"),
    ("of 4 MiB", "sequential_4m_cpu_s"),
    ("wait for a read of 4 KiB", "read_4k_latency_s"),
    ("of 64 KiB", "read_64k_latency_s"),
    ("of 4 MiB", "read_4m_latency_s"),
    ("CPU of a write of 4 KiB", "write_4k_cpu_s"),
    ("CPU of a flush", "flush_cpu_s"),
    ("QEMU's memory for it", "memory_bytes"),
    ("CPU of opening it", "open_cpu_s"),
    ("open files", "file_descriptors"),
    ("longest chain that reads", "longest_layers"),
)


@click.command()
@click.argument("image")
@chain_options
@click.option(
    "--qemu", "qemu_spec", metavar="Q", help="host, debian:SUITE, or a path.  [default: host, if there is one]"
)
@click.option("--lift", type=click.Choice(_LIFTS), help="Also as it would be then; no-check: a QEMU without the check.")
@click.option("--layers", type=click.IntRange(min=1), help="What prune leaves over the base.  [default: 10]")
@click.option(
    "--aio",
    type=click.Choice(("threads", "io_uring")),
    default="threads",
    show_default=True,
    help="How QEMU reads files.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; units are in the names.")
def command(
    image: str,
    within: tuple[Path, ...],
    max_depth: int,
    image_format: str | None,
    qemu_spec: str | None,
    lift: Lift | None,
    layers: int | None,
    aio: Aio,
    as_json: bool,
) -> None:
    """Foresee what IMAGE's chain costs a QEMU: CPU time of reads, memory, time to open.

    Nothing is measured but, without a calibration, the host's speed for a second; `chainlift calibrate` measures the
    QEMU. Every figure has the range beside it in which it is in nine of ten cases. Reads are taken to lie anywhere on
    the disk, and what they read to be in the page cache.

    Reads metadata only, and may be used on an image that a running QEMU has open.
    """
    from chainlift.chain import open_chain
    from chainlift.chain.policy import ChainPolicy
    from chainlift.chain.summarize import summarize
    from chainlift.cli.json_output import print_json
    from chainlift.cli.table import print_table
    from chainlift.cost import find_parameters, predict, shape_of
    from chainlift.units import counted

    with open_chain(image, ChainPolicy(within, max_depth), format=image_format) as chain:
        shape = shape_of(summarize(chain))
    parameters = find_parameters(_version(qemu_spec))
    now = predict(shape, parameters, layers=layers, aio=aio)
    then = None if lift is None else predict(shape, parameters, lift, layers=layers, aio=aio)
    if as_json:
        found: dict[str, object] = {"image": image, "length": shape.length, "qemu": parameters.qemu}
        found |= {"parameters": parameters.origin, "aio": aio, "lift": lift or "none", **(then or now).as_json()}
        print_json(found if then is None else {**found, "without_lift": now.as_json()})
        return
    heads = ("", "as it is", "within") + (() if lift is None else (_after(lift), "within"))
    print_table(
        f"{image}: {counted(shape.length, 'layer')} over the base, foreseen for QEMU {parameters.qemu.split()[0]}",
        heads,
        [(title, *_cells(name, now), *(() if then is None else _cells(name, then))) for title, name in _ROWS],
        numeric=range(1, len(heads)),
        note=parameters.origin,
    )
    for phrase in dict.fromkeys((*now.unknown, *(() if then is None else then.unknown))):
        click.echo(f"not known: {phrase}")


def _after(lift: str) -> str:
    return {"no-check": "without the check", "index": "through an index"}.get(lift, f"after {lift}")


def _version(spec: str | None) -> str | None:
    """Return the version of the QEMU that is meant; None where none is named and none is there."""
    from chainlift.errors import MissingToolError
    from chainlift.qemu.find import find_qemu

    try:
        return find_qemu(spec or "host", need=()).version_text
    except MissingToolError:
        if spec is not None:
            raise
        return None


def _cells(name: str, cost: Cost) -> Iterator[str]:
    figure: Figure | None = getattr(cost, name)
    if figure is None:
        yield from ("not known", "")
        return
    yield _told(name, figure.value)
    yield f"{_told(name, figure.low)} - {_told(name, figure.high)}"


def _told(name: str, value: float) -> str:
    from chainlift.units import format_bytes, format_seconds

    if name.endswith("_s"):
        return format_seconds(value)
    return format_bytes(value) if name.endswith("_bytes") else f"{value:,.0f}"
