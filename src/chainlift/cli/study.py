"""``chainlift study``: run the experiment, or any plan like it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from chainlift.cli.group import Group
from chainlift.cli.options import OUTPUT_DIRECTORY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chainlift.report.table import Table
    from chainlift.study.plan import Plan

_PLAN = click.argument("plan", metavar="PLAN|FILE")
_CHAINS = click.option("--chains", type=OUTPUT_DIRECTORY, help="Keep built chains in this directory.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")


@click.group(cls=Group)
def command() -> None:
    """Build a chain under a live guest, measure it at several lengths, draw the report.

    A plan is a TOML file or one of those that come with chainlift: `quick` (minutes), `seed` (the experiment's own
    parameters, hours), `long` (1,000 layers).
    """


@command.command()
@click.argument("like", metavar="[PLAN]", default="quick")
def init(like: str) -> None:
    """Write a plan with every key explained to standard output, with the values of PLAN (quick)."""
    from chainlift.study.plan_file import load_plan
    from chainlift.study.plan_text import plan_text

    click.echo(plan_text(load_plan(like), explain=True), nl=False)


@command.command()
@_PLAN
@_CHAINS
def build(plan: str, chains: Path | None) -> None:
    """Build the chain of a plan ahead, or what is left of it; a later run uses it."""
    from chainlift.cli.progress import TerminalProgress
    from chainlift.study.build import Bench, built_chain
    from chainlift.units import counted, format_bytes, format_seconds

    loaded = _load(plan, chains)
    with TerminalProgress() as progress:
        chain, manifest = built_chain(loaded, Bench.find(loaded), progress)
    layers = manifest.shape.layer_bytes[1:]
    mean = format_bytes(sum(layers) / len(layers))
    took = format_seconds(manifest.shape.build_s or 0.0)
    click.echo(f"{chain.path}: {counted(len(layers), 'layer')} of {mean} on average, built in {took}")


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
    with TerminalProgress() as progress:
        results = run_study(loaded, out or Path("out", loaded.name), progress)
    _show([results.path], as_json=as_json, draw=not no_report)


@command.command()
@click.argument("directories", metavar="DIR...", nargs=-1, type=click.Path(path_type=Path))
@click.option("--out", type=OUTPUT_DIRECTORY, help="Write the page and its figures there.  [default: the first DIR]")
@_JSON
@click.option(
    "--paper",
    type=OUTPUT_DIRECTORY,
    help="Write figures as PDF (PGF where LaTeX is installed), tables as LaTeX and Markdown, statistics as CSV there.",
)
@click.option("--schema", is_flag=True, help="Print what `chainlift schema study report` prints.")
def report(directories: tuple[Path, ...], out: Path | None, as_json: bool, paper: Path | None, schema: bool) -> None:
    """Draw results again; several directories are laid side by side in the first one's report."""
    if schema:
        from chainlift.cli.json_output import schemas

        click.echo(json.dumps(schemas()["chainlift study report"], indent=1, ensure_ascii=False))
        return
    if not directories:
        raise click.UsageError("Missing argument 'DIR...'.")
    if paper is not None:
        from chainlift.report import write_paper

        for path in write_paper(directories, paper):
            click.echo(f"written: {path}", err=True)
        return
    _show(list(directories), as_json=as_json, draw=not as_json or out is not None, out=out)


@command.command()
@click.argument("mine", type=click.Path(path_type=Path))
@click.argument("theirs", type=click.Path(path_type=Path))
@_JSON
def compare(mine: Path, theirs: Path, as_json: bool) -> None:
    """Say which figures of two runs agree, with the intervals of their ratios."""
    from chainlift.cli.json_output import print_json
    from chainlift.report import compare_runs

    tables = compare_runs(mine, theirs)
    if as_json:
        print_json({"tables": [table.as_data() for table in tables]})
    else:
        _print(tables)


@command.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The archive.  [default: NAME-study.tar.gz, here]")
def bundle(directory: Path, out: Path | None) -> None:
    """Make one archive of a result directory, with checksums, for others to check and to compare with theirs."""
    from chainlift.results.bundle import write_bundle

    archive = out or Path(f"{directory.resolve().name}-study.tar.gz")
    names = write_bundle(directory, archive)
    click.echo(f"{archive}: {len(names)} files")


@command.command()
@_CHAINS
@click.option("--delete", "names", metavar="NAME", multiple=True, help="Delete this chain; may be given several times.")
@_JSON
def chains(chains: Path | None, names: tuple[str, ...], as_json: bool) -> None:
    """List the built chains that are kept, with what they take; with --delete, delete chains by their names."""
    from chainlift.cli.json_output import print_json
    from chainlift.cli.table import print_table
    from chainlift.study.kept_chains import delete_chain, kept_chains
    from chainlift.units import format_bytes

    for name in names:
        delete_chain(chains, name)
    found = kept_chains(chains)
    if as_json:
        print_json({"chains": [kept.as_data() for kept in found]})
        return
    rows = [
        [
            kept.name,
            f"{kept.length:,}" if kept.length is not None else "not finished",
            format_bytes(kept.bytes_on_disk),
            kept.used_at.strftime("%Y-%m-%d %H:%M"),
            str(kept.path),
        ]
        for kept in found
    ]
    print_table("Chains that are kept", ["Chain", "Layers", "On disk", "Changed", "Where"], rows, numeric={1, 2})


def _load(name: str, chains: Path | None) -> Plan:
    from chainlift.study.plan_file import load_plan

    plan = load_plan(name)
    return plan if chains is None else plan.model_copy(update={"chains": str(chains.absolute())})


def _require_report() -> None:
    """Refuse now what would only fail after hours of measuring."""
    from importlib.util import find_spec

    from chainlift.errors import MissingToolError

    if find_spec("matplotlib") is None or find_spec("jinja2") is None:
        raise MissingToolError(
            "drawing needs the extra 'report'",
            hint="pip install 'chainlift[report]', or Debian's package chainlift-study, or --no-report",
        )


def _show(directories: list[Path], *, as_json: bool, draw: bool, out: Path | None = None) -> None:
    from chainlift.report import document, result_tables, write_report

    page = write_report(directories, out) if draw else None
    if as_json:
        click.echo(document(directories).model_dump_json(indent=1, by_alias=True))
    else:
        _print(result_tables(directories))
    if page is not None:
        click.echo(f"report: {page}", err=as_json)


def _print(tables: Sequence[Table]) -> None:
    from chainlift.cli.table import print_table

    for table in (table.visible for table in tables if table.shown):
        print_table(
            table.title,
            [column.title for column in table.columns],
            [[entry.text for entry in row] for row in table.rows],
            numeric={number for number, column in enumerate(table.columns) if column.numeric},
            note=table.note,
        )
