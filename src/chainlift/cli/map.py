"""``chainlift map``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from chainlift.cli.options import chain_options

if TYPE_CHECKING:
    from pathlib import Path


@click.command("map")
@click.argument("image")
@chain_options
@click.option("--json", "as_json", is_flag=True, help="Print the array of 'qemu-img map --output=json'.")
@click.option(
    "--as-qemu",
    metavar="VERSION",
    default="8.2",
    show_default=True,
    help="With --json: the QEMU whose text is printed: 8.2 and newer say 'compressed' too, 6.1 to 8.1 do not.",
)
def command(
    image: str, within: tuple[Path, ...], max_depth: int, image_format: str | None, as_json: bool, as_qemu: str
) -> None:
    """Print what 'qemu-img map' prints of IMAGE and all that lies below it, without QEMU."""
    from chainlift import facts
    from chainlift.chain.extents import map_json, map_table
    from chainlift.chain.opening import open_chain
    from chainlift.chain.policy import ChainPolicy

    version = _parse_version(as_qemu)
    with open_chain(image, ChainPolicy(within, max_depth), format=image_format) as chain:
        sys.stdout.writelines(
            map_json(chain, with_compressed=facts.COMPRESSED.holds(version)) if as_json else map_table(chain)
        )


def _parse_version(text: str) -> tuple[int, ...]:
    from chainlift import facts

    try:
        version = tuple(int(part) for part in text.split("."))
    except ValueError:
        raise click.BadParameter(f"{text!r} is no version (example: 7.2)", param_hint="--as-qemu") from None
    if not facts.PRESENT.holds(version):
        raise click.BadParameter("before 6.1 qemu-img did not say what is 'present'", param_hint="--as-qemu")
    return version
