"""``chainlift diff``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from chainlift.cli.options import OUTPUT_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from chainlift.lift.compare.ranges import Range
    from chainlift.lift.diff import Difference


@click.command("diff")
@click.argument("old")
@click.argument("new")
@click.option("--content", is_flag=True, help="Only what really differs: compare bytes, in blocks of 4 KiB.")
@click.option("--export", "out", type=OUTPUT_FILE, metavar="FILE",
              help="Write a qcow2 image that has just the difference, with OLD as its backing file.")  # fmt: skip
@click.option(
    "--within", type=click.Path(), multiple=True, metavar="DIR",
    help="Refuse files outside DIR; may be given several times.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the ranges as an array: start, length, zero.")
def command(old: str, new: str, content: bool, out: Path | None, within: tuple[str, ...], as_json: bool) -> None:
    """Print the ranges of the disk in which the snapshot NEW differs from the snapshot OLD.

    Both are images of one chain, or of chains that share a layer. Outside the ranges both read the same bytes; "zero"
    says that NEW is known to read as zeros there. Only tables are read, not the data, unless --content is given, and of
    what both stand on not even those: layers that a running VM has below its active one may be compared.
    """
    from pathlib import Path

    from chainlift.chain.policy import ChainPolicy
    from chainlift.cli.byte_progress import byte_progress
    from chainlift.errors import one_line
    from chainlift.lift.diff import open_difference
    from chainlift.units import counted, format_bytes

    if out is not None:
        from chainlift.lift.destination import refuse_existing
        from chainlift.lift.diff_export import export_difference

        refuse_existing(out, overwrite=False)
    policy = ChainPolicy(tuple(Path(directory) for directory in within))
    with open_difference(old, new, policy, content=content, export=out is not None) as difference:
        older, newer = difference.old.virtual_size, difference.new.virtual_size
        if older != newer:
            sizes = f"{format_bytes(older)} ({older}) and {format_bytes(newer)} ({newer})"
            click.echo(f"chainlift: the disks differ in size: {sizes} bytes", err=True)
        with byte_progress("comparing" if content else "copying") as progress:
            ranges = _told(difference, progress if content else None, as_json=as_json, is_quiet=out is not None)
            if out is None:
                for _ in ranges:
                    pass
                return
            done = export_difference(difference, ranges, out, progress=None if content else progress)
    line = (
        f"{one_line(str(out))}: {format_bytes(done.file_bytes)} with {format_bytes(done.range_bytes)} of the disk in "
        f"{counted(done.ranges, 'range')}, over {one_line(old)}"
    )
    click.echo(line, err=as_json)


def _told(
    difference: Difference, progress: Callable[[int], None] | None, *, as_json: bool, is_quiet: bool
) -> Iterator[Range]:
    """Pass ranges on, and print them."""
    from chainlift.units import counted, format_bytes

    found = total = 0

    def counting() -> Iterator[Range]:
        nonlocal found, total
        for one in difference.ranges(progress):
            found, total = found + 1, total + one.length
            yield one

    if as_json:
        yield from _as_json(counting())
        return
    if not is_quiet:
        sys.stdout.write(f"{'Offset':<16}{'Length':<16}Zero\n")
    for one in counting():
        if not is_quiet:
            sys.stdout.write(f"{one.start:<#16x}{one.length:<#16x}{'yes' if one.zero else 'no'}\n")
        yield one
    if not is_quiet:
        click.echo(f"{format_bytes(total)} in {counted(found, 'range')}", err=True)


def _as_json(ranges: Iterable[Range]) -> Iterator[Range]:
    """Pass ranges on, and print them as qemu-img prints a map."""
    before = "["
    for one in ranges:
        zero = "true" if one.zero else "false"
        sys.stdout.write(f'{before}{{ "start": {one.start}, "length": {one.length}, "zero": {zero}}}')
        before = ",\n"
        yield one
    sys.stdout.write("[]\n" if before == "[" else "]\n")
