"""``chainlift verify``: whether a lift is still true."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from chainlift.cli.disk import disk_options

if TYPE_CHECKING:
    from chainlift.cli.disk import DiskName


@click.command()
@disk_options
@click.option("--content", is_flag=True, help="Compare every byte with the original chain.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(name: DiskName, content: bool, as_json: bool) -> None:
    """Check that every lift in the chain of IMAGE, and every layer it stands on, are what they were when it was built.

    Exit status 1 if they are not; each thing that differs is printed.
    """
    from chainlift.cli.byte_progress import byte_progress
    from chainlift.cli.json_output import print_json
    from chainlift.errors import AnswerIsNo
    from chainlift.lift.verify import verify
    from chainlift.units import counted

    with name.open() as disk, byte_progress("comparing") as progress:
        verified = verify(disk, content=content, progress=progress)
    findings = [finding for lift in verified for finding in lift.findings]
    if as_json:
        lifts = [
            {
                "image": str(entry.image),
                "kind": entry.lift.manifest.kind,
                "lift": str(entry.lift.file),
                "true": not entry.findings,
                "findings": [{"path": finding.path, "what": finding.what} for finding in entry.findings],
            }
            for entry in verified
        ]
        print_json({"true": not findings, "lifts": lifts})
    else:
        for finding in findings:
            click.echo(f"{finding.path}: {finding.what}")
    wrong = next((entry for entry in verified if entry.findings), None)
    if wrong is not None:
        hint = "chainlift restore takes the image off it, then build it again"
        if wrong.lift.manifest.deleted:
            hint = "its original layers were deleted: there is no way back, look at what is named above"
        raise AnswerIsNo(f"its {wrong.lift.manifest.kind} is not true any more", path=wrong.image, hint=hint)
    for entry in () if as_json else verified:
        manifest = entry.lift.manifest
        compared = ", and every byte is the same" if content and entry.lift.can_be_undone else ""
        were = "is as it was" if len(manifest.layers) == 1 else "are as they were"
        layers = "its layers were deleted" if manifest.deleted else f"{counted(len(manifest.layers), 'layer')} {were}"
        click.echo(f"{entry.image}: its {manifest.kind} is true: {layers}{compared}")
