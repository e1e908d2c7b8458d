"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

_F = TypeVar("_F", bound="Callable[..., object]")


def chain_options(function: _F) -> _F:
    """Add what ``open_chain`` and its policy take: ``within``, ``max_depth``, ``image_format``."""
    for option in (
        click.option(
            "-f", "--format", "image_format", type=click.Choice(("qcow2", "raw")), help="IMAGE's format; else probed."
        ),
        click.option(
            "--max-depth", type=click.IntRange(min=0), default=10_000, show_default=True, help="Most layers to follow."
        ),
        click.option(
            "--within", type=click.Path(path_type=Path), multiple=True, metavar="DIR",
            help="Refuse files outside DIR; may be given several times.",
        ),
    ):  # fmt: skip
        function = option(function)
    return function
