"""``chainlift verify``: whether a lift is still true."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("image", type=click.Path())
@click.option("--content", is_flag=True, help="Compare every byte with the original chain.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(image: str, content: bool, as_json: bool) -> None:
    """Check that the lift of IMAGE and every layer it stands on are what they were when it was built.

    Exit status 1 if they are not; each thing that differs is printed.
    """
    from chainlift.cli.byte_progress import byte_progress
    from chainlift.errors import AnswerIsNo
    from chainlift.lift.verify import verify_lift

    with byte_progress("comparing") as progress:
        manifest, findings = verify_lift(image, content=content, progress=progress)
    if as_json:
        rows = [{"path": finding.path, "what": finding.what} for finding in findings]
        click.echo(json.dumps({"kind": manifest.kind, "true": not findings, "findings": rows}, indent=1))
    else:
        for finding in findings:
            click.echo(f"{finding.path}: {finding.what}")
    if findings:
        raise AnswerIsNo(
            f"its {manifest.kind} is not true any more",
            path=image,
            hint="chainlift restore takes the image off it, then build it again",
        )
    if not as_json:
        compared = ", and every byte is the same" if content else ""
        click.echo(f"{image}: its {manifest.kind} is true: {len(manifest.layers)} layers are as they were{compared}")
