"""``chainlift study``: run the experiment, or any plan like it."""

from __future__ import annotations

import json
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from chainlift.cli.options import OUTPUT_DIRECTORY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chainlift.study.plan import Plan

_PLAN = click.argument("plan", metavar="PLAN|FILE")
_CHAINS = click.option("--chains", type=OUTPUT_DIRECTORY, help="Keep built chains in this directory.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")


@click.group()
def command() -> None:
    """Build a chain under a live guest, measure it at several lengths, draw the report.

    A plan is a TOML file or one of those that come with chainlift: `quick` (minutes), `seed` (the experiment's own
    parameters, hours), `long` (1,000 layers).
    """


@command.command()
@click.argument("like", metavar="[PLAN]", default="quick")
def init(like: str) -> None:
    """Write a plan with every key explained to standard output, with the values of PLAN (quick)."""
    from chainlift.study.plan import load_plan
    from chainlift.study.plan_text import plan_text

    click.echo(plan_text(load_plan(like), explain=True), nl=False)


@command.command()
@_PLAN
@_CHAINS
def build(plan: str, chains: Path | None) -> None:
    """Build the chain of a plan ahead, or what is left of it; a later run uses it."""
    from chainlift.cli.progress import TerminalProgress
    from chainlift.study.build import Bench, built_chain
    from chainlift.units import format_bytes, format_seconds

    loaded = _load(plan, chains)
    with _ended_by_sigterm(), TerminalProgress() as progress:
        chain, manifest = built_chain(loaded, Bench.find(loaded), progress)
    layers = manifest.shape.layer_bytes[1:]
    mean = format_bytes(sum(layers) / len(layers))
    took = format_seconds(manifest.shape.build_s or 0.0)
    click.echo(f"{chain.path}: {len(layers)} layers of {mean} on average, built in {took}")


@command.command()
@_PLAN
@click.option("--out", type=OUTPUT_DIRECTORY, help="The result directory.  [default: out/NAME]")
@_CHAINS
@_JSON
@click.option("--no-report", is_flag=True, help="Measure only; draw later with `chainlift study report`.")
def run(plan: str, out: Path | None, chains: Path | None, as_json: bool, no_report: bool) -> None:
    """Run a plan; what an interrupted run has done is not done again."""
    from chainlift.cli.progress import TerminalProgress
    from chainlift.study.runner import run_study

    loaded = _load(plan, chains)
    if not no_report:
        _require_report()
    with _ended_by_sigterm(), TerminalProgress() as progress:
        results = run_study(loaded, out or Path("out", loaded.name), progress)
    _show([results.path], as_json=as_json, draw=not no_report)


@command.command()
@click.argument("directories", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@_JSON
def report(directories: tuple[Path, ...], as_json: bool) -> None:
    """Draw results again; several directories are laid side by side in the first one's report."""
    _show(list(directories), as_json=as_json, draw=not as_json)


def _load(name: str, chains: Path | None) -> Plan:
    from chainlift.study.plan import load_plan

    plan = load_plan(name)
    return plan if chains is None else plan.model_copy(update={"chains": str(chains.absolute())})


def _require_report() -> None:
    """Refuse now what would only fail after hours of measuring."""
    from importlib.util import find_spec

    from chainlift.errors import MissingToolError

    if find_spec("matplotlib") is None or find_spec("jinja2") is None:
        raise MissingToolError(
            "drawing needs the extra 'report'", hint="pip install 'chainlift[report]' or --no-report"
        )


def _show(directories: list[Path], *, as_json: bool, draw: bool) -> None:
    from chainlift.report import result_tables, write_report

    page = write_report(directories) if draw else None
    tables = result_tables(directories)
    if as_json:
        click.echo(json.dumps([table.as_data() for table in tables], indent=1))
    else:
        from chainlift.cli.table import print_table

        for table in tables:
            print_table(
                table.title,
                [column.title for column in table.columns],
                [[entry.text for entry in row] for row in table.rows],
                numeric={number for number, column in enumerate(table.columns) if column.numeric},
                note=table.note,
            )
    if page is not None:
        click.echo(f"report: {page}", err=as_json)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a study as Ctrl-C does: QEMU ended, throw-away files gone, the rest resumable."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
