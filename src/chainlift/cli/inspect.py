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

    from chainlift.chain.broken import Broken
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

    Of a chain that is broken, what is intact is shown, and what would mend it; exit status 2.

    Reads metadata only, needs no QEMU, and may be used on an image that a running QEMU has open.
    """
    from chainlift.chain.broken import inspect_chain
    from chainlift.chain.policy import ChainPolicy

    summary, trouble = inspect_chain(image, ChainPolicy(within, max_depth), format=image_format)
    broken = None if trouble is None else trouble[0]
    if as_json:
        click.echo(json.dumps(_as_json(summary, broken), indent=1))
    else:
        from chainlift.cli.inspect_text import lines

        width = max(60, min(shutil.get_terminal_size((80, 24)).columns, 160))
        can_draw = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        click.echo("\n".join(lines(summary, width, every_layer=every_layer, can_draw=can_draw, broken=broken)))
    if trouble is not None:
        raise trouble[1]


def _as_json(summary: ChainSummary, broken: Broken | None) -> dict[str, object]:
    from dataclasses import asdict

    derived = ("disk_bytes", "visible_bytes", "shadowed_bytes", "l2_cache_bytes", "mean_depth")
    whole = asdict(summary) | {name: getattr(summary, name) for name in derived}
    for entry, layer in zip(whole["layers"], summary.layers, strict=True):
        entry |= {"visible_clusters": layer.visible_clusters, "shadowed_clusters": layer.shadowed_clusters}
    return {"schema": 1, **whole, "broken": None if broken is None else asdict(broken)}
