"""Options that several verbs share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

_F = TypeVar("_F", bound="Callable[..., object]")


class _OutputFile(click.Path):
    """A file that will be written: that its directory is missing is found before hours of work, not after."""

    def __init__(self) -> None:
        super().__init__()

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if not path.name or not path.parent.is_dir():
            self.fail(f"{os.fspath(path.parent)!r} is no directory.", param, ctx)
        return path


class _OutputDirectory(click.Path):
    """A directory that will be made if need be: it, or what it would be made in, is one that can be written to."""

    def __init__(self) -> None:
        super().__init__(file_okay=False, writable=True)

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        there = path.absolute()
        while not os.path.lexists(there):
            there = there.parent
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            self.fail(f"{os.fspath(there)!r} is no directory that can be written to.", param, ctx)
        return path


OUTPUT_FILE = _OutputFile()
OUTPUT_DIRECTORY = _OutputDirectory()


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
