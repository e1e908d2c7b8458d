"""``chainlift inspect``."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import click

from chainlift.cli.options import chain_options
from chainlift.cli.parameters import parameters_at_hand

if TYPE_CHECKING:
    from pathlib import Path

    from chainlift.chain.broken import Broken
    from chainlift.chain.summary import ChainSummary
    from chainlift.cost import Cost, Parameters

#: A shorter chain costs next to nothing, and nothing is said of it.
_LEAST_LENGTH = 8


@click.command("inspect")
@click.argument("image")
@chain_options
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON; sizes are in bytes.")
@click.option("--all", "every_layer", is_flag=True, help="List every layer of a long chain.")
def command(
    image: str, within: tuple[Path, ...], max_depth: int, image_format: str | None, as_json: bool, every_layer: bool
) -> None:
    """Show who backs whom, what each layer contributes to IMAGE and what is dead weight, how far reads fall.

    "frees" is what deleting a layer would free once the one above has taken over what it needs of it, if no other image
    stands on it. Of a chain that is broken, what is intact is shown, and what would mend it; exit status 2.

    Reads metadata only, needs no QEMU, and may be used on an image that a running QEMU has open.
    """
    from chainlift.chain.broken import inspect_chain
    from chainlift.chain.policy import ChainPolicy
    from chainlift.cli.json_output import print_json

    summary, trouble = inspect_chain(image, ChainPolicy(within, max_depth), format=image_format)
    broken = None if trouble is None else trouble[0]
    cost = None if broken is not None or summary.length < _LEAST_LENGTH else _cost(summary)
    if as_json:
        print_json(_as_json(summary, broken, cost))
    else:
        from chainlift.cli.inspect_text import lines

        width = max(60, min(shutil.get_terminal_size((80, 24)).columns, 160))
        can_draw = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        click.echo(
            "\n".join(lines(summary, width, every_layer=every_layer, can_draw=can_draw, broken=broken, cost=cost))
        )
    if trouble is not None:
        raise trouble[1]


def _cost(summary: ChainSummary) -> tuple[Parameters, Cost] | None:
    """Foresee what the chain costs; None where a calibration here cannot be read."""
    from chainlift.cost import predict, shape_of

    parameters = parameters_at_hand()
    return None if parameters is None else (parameters, predict(shape_of(summary), parameters))


def _as_json(summary: ChainSummary, broken: Broken | None, cost: tuple[Parameters, Cost] | None) -> dict[str, object]:
    from dataclasses import asdict

    derived = ("disk_bytes", "visible_bytes", "shadowed_bytes", "l2_cache_bytes", "mean_depth")
    whole = asdict(summary) | {name: getattr(summary, name) for name in derived}
    for entry, layer in zip(whole["layers"], summary.layers, strict=True):
        entry |= {"visible_clusters": layer.visible_clusters, "shadowed_clusters": layer.shadowed_clusters}
    foreseen = None if cost is None else {"qemu": cost[0].qemu, "parameters": cost[0].origin, **cost[1].as_json()}
    return {**whole, "broken": None if broken is None else asdict(broken), "cost": foreseen}
