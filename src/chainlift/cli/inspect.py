"""``chainlift inspect``."""

from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING

import click

from chainlift.cli.options import chain_options

if TYPE_CHECKING:
    from pathlib import Path

    from chainlift.chain.summary import ChainSummary


@click.command("inspect")
@click.argument("image")
@chain_options
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON; sizes are in bytes.")
@click.option("--all", "every_layer", is_flag=True, help="List every layer of a long chain.")
def command(
    image: str, within: tuple[Path, ...], max_depth: int, image_format: str | None, as_json: bool, every_layer: bool
) -> None:
    """Show who backs whom, what each layer contributes to IMAGE and what is dead weight, how far reads fall.

    Reads metadata only, needs no QEMU, and may be used on an image that a running QEMU has open.
    """
    from chainlift.chain.opening import open_chain
    from chainlift.chain.policy import ChainPolicy
    from chainlift.chain.summary import summarize

    with open_chain(image, ChainPolicy(within, max_depth), format=image_format) as chain:
        summary = summarize(chain)
    if as_json:
        click.echo(json.dumps(_as_json(summary), indent=1))
        return
    from chainlift.cli.inspect_text import lines

    width = max(60, min(shutil.get_terminal_size((80, 24)).columns, 160))
    can_draw = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    click.echo("\n".join(lines(summary, width, every_layer=every_layer, can_draw=can_draw)))


def _as_json(summary: ChainSummary) -> dict[str, object]:
    from dataclasses import asdict

    derived = ("disk_bytes", "visible_bytes", "shadowed_bytes", "l2_cache_bytes", "mean_depth")
    whole = asdict(summary) | {name: getattr(summary, name) for name in derived}
    for entry, layer in zip(whole["layers"], summary.layers, strict=True):
        entry |= {"visible_clusters": layer.visible_clusters, "shadowed_clusters": layer.shadowed_clusters}
    return {"schema": 1, **whole}
