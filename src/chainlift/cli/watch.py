"""``chainlift watch``: keep the chains of running VMs short."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from chainlift.cli.options import OUTPUT_FILE
from chainlift.cli.sizes import SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator


@click.command()
@click.option(
    "--qmp", "sockets", type=click.Path(path_type=Path), multiple=True, metavar="SOCKET", help="A VM's socket."
)
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR",
    help="All sockets in DIR, as they come.",
)  # fmt: skip
@click.option(
    "--max-length", type=click.IntRange(min=1), default=32, show_default=True, help="Index above this length."
)
@click.option(
    "--interval", type=click.FloatRange(min=1), default=60, show_default=True, metavar="S", help="Between rounds."
)
@click.option("--copy-budget", type=SIZE, metavar="SIZE", help="As of chainlift index.")
@click.option("--status", type=OUTPUT_FILE, metavar="FILE", help="Write a JSON status there.")
@click.option("--metrics", type=OUTPUT_FILE, metavar="FILE", help="Write Prometheus text there.")
@click.option("--once", is_flag=True, help="One round; exit status 1 if something went wrong.")
def command(
    sockets: tuple[Path, ...],
    directory: Path | None,
    max_length: int,
    interval: float,
    copy_budget: int | None,
    status: Path | None,
    metrics: Path | None,
    once: bool,
) -> None:
    """Index the disks of running VMs whenever their chains have grown longer than --max-length.

    A socket is only held while it is asked, so a backup tool may use the same one in between.
    """
    import json
    import time

    from chainlift.errors import AnswerIsNo, one_line
    from chainlift.lift.live.gentle import be_gentle
    from chainlift.lift.live.watch import WatchStatus, as_json, as_prometheus, sockets_in, watch_round

    if not sockets and directory is None:
        raise click.UsageError("Missing option '--qmp' or '--dir'")
    be_gentle()
    seen = WatchStatus()
    while True:
        troubles: list[tuple[str, str]] = []
        with _noted(troubles, directory or "the sockets"):
            there = [*sockets, *(sockets_in(directory) if directory is not None else ())]
            watch_round(seen, there, max_length=max_length, copy_budget_bytes=copy_budget)
        troubles += [*seen.silent.items(), *((disk.image, disk.error) for disk in seen.disks.values() if disk.error)]
        for file, text in ((status, json.dumps(as_json(seen), indent=1) + "\n"), (metrics, as_prometheus(seen))):
            if file is not None:
                with _noted(troubles, file):
                    _replace(file, text)
        for where, trouble in troubles:
            click.echo(one_line(f"chainlift: warning: {where}: {trouble}"), err=True)
        if once:
            if status is None:
                click.echo(json.dumps(as_json(seen), indent=1))
            if troubles:
                raise AnswerIsNo(f"{len(troubles)} of the disks, sockets and files could not be served")
            return
        time.sleep(interval)


@contextmanager
def _noted(troubles: list[tuple[str, str]], where: str | Path) -> Iterator[None]:
    """Note what the operating system refuses: the next round may go well, and other disks are to be watched."""
    try:
        yield
    except OSError as error:
        troubles.append((str(error.filename or where), error.strerror or str(error)))


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
