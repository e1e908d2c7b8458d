"""``chainlift survey``: every chain of a host, or of a fleet, and which come first."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from chainlift.cli.options import OUTPUT_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from chainlift.results.survey.records import Chain, End, Place, Record, Trouble
    from chainlift.results.survey.store import Survey
    from chainlift.survey.settings import Settings

#: As a name of a file: the lines go to standard output.
_STDOUT = "-"
#: How long a scheduler may be without a worker that can look at a place.
_PATIENCE_S = 30.0


@click.command("survey")
@click.argument("paths", nargs=-1, metavar="PATH...")
@click.option(
    "--json", "json_file", type=OUTPUT_FILE, metavar="FILE",
    help="Keep all that is found in FILE, a JSON object a line; '-': print it. An interrupted survey is gone on with.",
)  # fmt: skip
@click.option("--report", type=OUTPUT_FILE, metavar="FILE", help="Draw it: one HTML page.")
@click.option("--parquet", type=OUTPUT_FILE, metavar="FILE", help="Write a table with a row a chain.")
@click.option(
    "--policy", metavar="RULES", help="Which snapshots are to stay, as for prune: '--keep-last 24 --keep-daily 7'."
)
@click.option(
    "--before", type=click.Path(), multiple=True, metavar="FILE",
    help="Lay an earlier survey beside it, or another host's; several times for several.",
)  # fmt: skip
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Have the workers of a Dask cluster do it; a PATH may be HOST:/DIRECTORY then.",
)
@click.option(
    "--qemu", metavar="QEMU", help="Whose costs are predicted: host, debian:SUITE, or a path.  [default: host]"
)
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Look at N chains at a time.  [default: CPUs]")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=0.1), default=60.0, show_default=True, metavar="S",
    help="Leave out a chain that takes longer to look at.",
)  # fmt: skip
@click.option("--no-libvirt", is_flag=True, help="Do not ask libvirt which domains have which disks.")
@click.option("--top", type=click.IntRange(min=0), default=10, show_default=True, metavar="N", help="Rank N chains.")
def command(
    paths: tuple[str, ...],
    json_file: Path | None,
    report: Path | None,
    parquet: Path | None,
    policy: str | None,
    before: tuple[str, ...],
    scheduler: str | None,
    qemu: str | None,
    jobs: int | None,
    timeout_s: float,
    no_libvirt: bool,
    top: int,
) -> None:
    """Say which of many disks suffer from their chains, how much, and what to do first.

    Every chain below the directories PATH is looked at, and every disk of this host's libvirt domains: how long it is,
    how far reads fall, what nobody can read, what it costs QEMU, what is broken or near a limit. Metadata only is read,
    with idle priority, and nothing is changed. Without PATH, what --before names is shown again.

    Exit status 1 if something had to be left out; what and why is said.
    """
    from pathlib import Path

    from chainlift.errors import AnswerIsNo
    from chainlift.results.survey.store import read_survey
    from chainlift.results.survey.trend import lay_together
    from chainlift.units import counted

    if not paths and not before:
        raise click.UsageError("Missing argument 'PATH...' (or --before FILE)")
    given = {"--json": json_file, "--scheduler": scheduler, "--policy": policy, "--qemu": qemu, "--jobs": jobs}
    if not paths and (alone := next((option for option, value in given.items() if value is not None), None)):
        raise click.UsageError(f"{alone} goes with a PATH")
    _require(report, parquet)
    earlier = [read_survey(Path(os.fsdecode(name))) for name in before]
    is_printed = json_file is not None and str(json_file) == _STDOUT
    surveys = list(earlier)
    if paths:
        options = _Options(policy, qemu, jobs, timeout_s, no_libvirt)
        file, tell = (None, _print_line) if is_printed else (json_file, None)
        surveys.append(_survey(paths, options, scheduler, file, tell))
    together = lay_together(surveys)
    if report is not None:
        from chainlift.report.survey import write_page

        write_page(together, report)
    if parquet is not None:
        from chainlift.results.survey.table import write_table

        write_table(together.survey.chains, parquet)
    if not is_printed:
        from chainlift.cli.survey_text import lines

        width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 160))
        can_draw = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        for line in lines(together, width, top=top, can_draw=can_draw):
            click.echo(line)
    # What an earlier one has left out is shown, and is not what this one is asked for.
    if left_out := (surveys[-1] if paths else together.survey).left_out:
        raise AnswerIsNo(f"{counted(left_out, 'thing')} could not be looked at, and something may be missing")


def _require(report: Path | None, parquet: Path | None) -> None:
    """Find out before hours of work that something to write with is not there."""
    if report is not None:
        from chainlift.report import style

        style.require()
    if parquet is not None:
        from chainlift.results.survey import table

        table.require()


@dataclass(frozen=True)
class _Options:
    """How to look."""

    policy: str | None
    qemu: str | None
    jobs: int | None
    timeout_s: float
    no_libvirt: bool

    @property
    def words(self) -> list[str]:
        """The same as words of a command line, for workers."""
        given = (("--policy", self.policy), ("--qemu", self.qemu), ("--jobs", self.jobs), ("--timeout", self.timeout_s))
        words = [word for option, value in given if value is not None for word in (option, str(value))]
        return [*words, *(["--no-libvirt"] if self.no_libvirt else [])]

    def settings(self) -> Settings:
        """Return what the survey of this host takes."""
        from chainlift.errors import InputError, one_line
        from chainlift.survey.foreseen import parameters_of
        from chainlift.survey.policy import Policy
        from chainlift.survey.settings import Settings

        rules = None if self.policy is None else Policy.parse(self.policy)
        try:
            return Settings(rules, parameters_of(self.qemu))
        except InputError as error:
            if self.qemu is not None:
                raise
            click.echo(one_line(f"chainlift: warning: no costs are predicted: {error}"), err=True)
            return Settings(rules)


def _survey(
    paths: tuple[str, ...],
    options: _Options,
    scheduler: str | None,
    file: Path | None,
    tell: Callable[[Record], None] | None,
) -> Survey:
    from chainlift.cli.progress import TerminalProgress
    from chainlift.host.priority import lower_priority
    from chainlift.survey.find import sources_of
    from chainlift.survey.fleet import Where, survey_fleet
    from chainlift.survey.local import survey_host
    from chainlift.survey.policy import Policy
    from chainlift.survey.run import run_survey
    from chainlift.survey.settings import Settings

    with TerminalProgress() as progress:
        if scheduler is None:
            settings = options.settings()
            lower_priority()
            sources = sources_of(paths)

            def look(known: Survey) -> Generator[Chain | Trouble | Place | End]:
                return survey_host(
                    paths, settings, processes=options.jobs or len(os.sched_getaffinity(0)),
                    timeout_s=options.timeout_s, with_libvirt=not options.no_libvirt, known=known.by_key,
                    progress=progress,
                )  # fmt: skip
        else:
            # Workers know their own QEMU and its costs.
            settings = Settings(None if options.policy is None else Policy.parse(options.policy))
            places = [Where.parse(path) for path in paths]
            sources = tuple(place.source for place in places)

            def look(known: Survey) -> Generator[Chain | Trouble | Place | End]:
                return survey_fleet(
                    scheduler, places, options.words, patience_s=_PATIENCE_S, done=known.places, progress=progress
                )

        return run_survey(sources, settings, look, file=file, tell=tell)


def _print_line(record: Record) -> None:
    from chainlift.results.survey.store import to_line

    click.echo(to_line(record), nl=False)
