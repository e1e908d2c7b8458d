"""``chainlift profile``: where QEMU's time goes on one image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from chainlift.cli.options import OUTPUT_DIRECTORY

if TYPE_CHECKING:
    from chainlift.qemu.profile import Workload

#: Functions that the table shows.
_SHOWN = 12


@click.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--qemu", default="host", metavar="QEMU", help="host, debian:SUITE, or a path.")
@click.option(
    "--workload",
    type=click.Choice(["read-4k", "read-64k", "read-4m", "stream"]),
    default="read-4k",
    show_default=True,
    help="Reads are qemu-img bench's; stream is block-stream into an overlay that is thrown away.",
)
@click.option("--seconds", type=click.FloatRange(0.5, 600), default=5.0, show_default=True, help="How long to record.")
@click.option("--frequency", type=click.IntRange(1, 5000), default=199, show_default=True, help="Samples a second.")
@click.option(
    "--symbols", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="File with QEMU's symbols."
)
@click.option("--out", type=OUTPUT_DIRECTORY, default=Path("out/profile"), show_default=True)
@click.option(
    "--against",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Folded stacks of another profile: draw what grew since, too.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    image: Path,
    qemu: str,
    workload: str,
    seconds: float,
    frequency: int,
    symbols: Path | None,
    out: Path,
    against: Path | None,
    as_json: bool,
) -> None:
    """Profile QEMU while it reads IMAGE, and draw flame graphs.

    The image is only read. Opening the chain is not recorded. Flame graphs (SVG), folded stacks and a speedscope file
    go to --out.
    """
    from chainlift.cli.json_output import print_json
    from chainlift.errors import InputError
    from chainlift.host.scratch import ScratchDirectory
    from chainlift.profiling.flamegraph import flame_graph
    from chainlift.profiling.stacks import load_stacks, profile_name, save_stacks
    from chainlift.qcow2.file import ImageFile
    from chainlift.qemu.find import find_qemu
    from chainlift.qemu.profile import profile_workload
    from chainlift.units import counted

    looked_at = ImageFile(str(image))  # a FIFO would hang a plain open
    magic = looked_at.pread(0, 4)
    looked_at.close()
    if magic != b"QFI\xfb":
        raise InputError("is not a qcow2 image", path=image)
    before = load_stacks(against) if against else None
    found = find_qemu(qemu)
    with ScratchDirectory() as scratch:
        profile = profile_workload(
            found,
            image.absolute(),  # a colon in a relative name would make it a protocol for QEMU
            cast("Workload", workload),
            scratch=scratch,
            seconds=seconds,
            frequency_hz=frequency,
            symbols=symbols,
        )
    stacks = profile.stacks
    name = profile_name(f"{image.stem}-{workload}", qemu, 0).removesuffix("--0-layers")
    files = save_stacks(out, name, stacks)
    title, subtitle = f"{workload} of {image.name}", f"QEMU {found.version_text}; {counted(stacks.total, 'sample')}"
    graphs = {name: flame_graph(stacks, title, subtitle)}
    if before is not None and against is not None:
        what = f"{subtitle}; red: more than in {against.name}, blue: less"
        graphs[f"{name}--against--{against.name.partition('.')[0]}"] = flame_graph(stacks, title, what, before=before)
    for stem, graph in graphs.items():
        path = out / f"{stem}.svg"
        path.write_text(graph, encoding="utf-8")
        files.insert(0, path)
    for hint in profile.hints:
        click.echo(f"chainlift: {hint}", err=True)
    hot = [{"function": function, "share": count / stacks.total} for function, count in stacks.self_samples().items()]
    result = {"image": str(image), "workload": workload, "qemu": found.version_text, **profile.metrics(), "hot": hot}
    if as_json:
        print_json({**result, "files": [str(file) for file in files]})
        return
    click.echo(f"{workload} of {image}, QEMU {found.version_text}: {counted(stacks.total, 'sample')}")
    for entry in hot[:_SHOWN]:
        click.echo(f"{entry['share']:8.1%}  {entry['function']}")
    click.echo(f"in bdrv_is_inserted: {profile.share_is_inserted:.1%}; without a name: {stacks.unknown_share:.1%}")
    for file in files:
        click.echo(f"wrote {file}")
