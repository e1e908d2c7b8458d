"""``chainlift relink``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from chainlift.lift.relink.plan import NewName, RelinkPlan, UnresolvedName
    from chainlift.lift.relink.verb import Relinked


@click.command("relink")
@click.argument("directories", nargs=-1, metavar="DIR...")
@click.option("--map", "maps", multiple=True, metavar="OLD=NEW",
              help="What is OLD in headers (a name, a path, a file name or a directory) is NEW now.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would be written, and change nothing.")
@click.option("--partly", is_flag=True, help="Write the names that were found, though others were not.")
@click.option("--undo", "journal", type=click.Path(dir_okay=False), metavar="LIST",
              help="Write the names that a list of an earlier run says were there before.")  # fmt: skip
@click.option("--force", is_flag=True, help="Also where a manager of virtual machines keeps a record of a chain.")
@click.option("--qemu", "spec", default="host", show_default=True, help="The QEMU whose tools write and open.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def command(
    directories: tuple[str, ...],
    maps: tuple[str, ...],
    dry_run: bool,
    partly: bool,
    journal: str | None,
    force: bool,
    spec: str,
    as_json: bool,
) -> None:
    """Find the backing files of images below DIR that were moved, and write their names anew.

    A missing file is looked for below DIR by its name; it is taken where just one file of that name can be that layer.
    What was renamed is never guessed: name it with --map. Relative names stay relative. All names are written or none,
    every chain is opened by QEMU afterwards, and a list is kept that undoes it.
    """
    from chainlift.cli.json_output import print_json
    from chainlift.errors import one_line
    from chainlift.lift.relink.plan import UnfoundError
    from chainlift.lift.relink.verb import Relinked, relink, undo_relink
    from chainlift.qemu.find import find_qemu
    from chainlift.units import counted

    if bool(directories) == (journal is not None):
        raise click.UsageError("give directories, or --undo and a list")
    if journal is not None:
        changes = undo_relink(journal, qemu=find_qemu(spec, need=["img"]))
        if as_json:
            undone = [{"image": str(change.owner), "name": change.old.name} for change in changes]
            print_json({"undone": undone})
        else:
            click.echo(f"{counted(len(changes), 'name')} written as before")
        return
    try:
        done = relink(
            directories,
            maps=dict(_pair(text) for text in maps),
            dry_run=dry_run,
            partly=partly,
            force=force,
            qemu=None if dry_run else find_qemu(spec, need=["img", "storage-daemon"]),
        )
    except UnfoundError as error:
        if as_json:
            print_json(_as_json(Relinked(error.plan)))
        else:
            _tell(error.plan, "would name")
        raise
    if done.finished:
        click.echo(f"chainlift: finished a run that was killed: {counted(done.finished, 'name')}", err=True)
    if as_json:
        print_json(_as_json(done))
        return
    _tell(done.plan, "would name" if dry_run else "names")
    for list_path in done.journals:
        click.echo(one_line(f"chainlift: what undoes it: chainlift relink --undo {list_path}"), err=True)
    if not done.journals and not done.plan.new_names and not done.plan.unresolved:
        click.echo("every backing file is where its name says")
    for line in done.warnings:
        click.echo(one_line(f"chainlift: {line}"), err=True)


def _pair(text: str) -> tuple[str, str]:
    old, separator, new = text.partition("=")
    if not separator or not old or not new:
        raise click.BadParameter(f"{text!r} is not OLD=NEW", param_hint="--map")
    return old, new


def _tell(plan: RelinkPlan, verb: str) -> None:
    from chainlift.errors import one_line

    for one in plan.new_names:
        old, new = one.change.old.name, one.change.new.name
        click.echo(one_line(f"{one.change.owner}: {verb} {new}, not {old} ({'; '.join(one.speaks_for)})"))
    for missing in plan.unresolved:
        click.echo(one_line(f"chainlift: {missing.image}: {missing.name!r} is not found; {missing.advice}"), err=True)
        for candidate in missing.candidates:
            sign, why = ("+", candidate.speaks_for) if candidate.fits else ("-", candidate.speaks_against)
            click.echo(one_line(f"  {sign} {candidate.path}: {'; '.join(why)}"), err=True)


def _as_json(done: Relinked) -> dict[str, object]:
    return {
        "changes": [_change(one) for one in done.plan.new_names],
        "unresolved": [_unresolved(one) for one in done.plan.unresolved],
        "undo": list(map(str, done.journals)),
        "libvirt": done.warnings,
    }


def _change(one: NewName) -> dict[str, object]:
    old, new = vars(one.change.old), vars(one.change.new)
    return {"image": str(one.change.owner), "old": old, "new": new, "found": one.found, "speaks_for": one.speaks_for}


def _unresolved(one: UnresolvedName) -> dict[str, object]:
    candidates = [{**vars(candidate), "fits": candidate.fits} for candidate in one.candidates]
    return {"image": one.image, "name": one.name, "candidates": candidates, "advice": one.advice}
