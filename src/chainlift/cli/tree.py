"""``chainlift tree``."""

from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chainlift.lift.forest.tree import Tree, TreeEntry


@click.command("tree")
@click.argument("directories", nargs=-1, required=True, metavar="DIR...")
@click.option("--all", "every_image", is_flag=True, help="List every snapshot of a long chain.")
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON; sizes are in bytes.")
def command(directories: tuple[str, ...], every_image: bool, as_json: bool) -> None:
    """Show every qcow2 image below the directories, and who stands on whom.

    A base is at the top of its tree, and under it what stands on it. "frees" is what deleting the image would free once
    the one above has taken over what it needs of it. What is broken or was moved is told with what would mend it, and
    what is in use with who uses it. Reads metadata only, and needs no QEMU.
    """
    from chainlift.lift.forest.tree import open_tree

    with open_tree(directories) as tree:
        if as_json:
            sys.stdout.writelines(_as_json(tree))
            return
        from chainlift.cli.tree_text import lines

        width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 160))
        can_draw = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        for line in lines(tree, width, every_image=every_image, can_draw=can_draw):
            click.echo(line)


def _as_json(tree: Tree) -> Iterator[str]:
    """Yield an object with one line for each image, those that stand on others behind these."""
    head = {"schema": 1, "directories": tree.forest.directories, "unreadable": tree.unreadable}
    yield json.dumps(head)[:-1] + ', "can_see_all": ' + json.dumps(tree.open_files.can_see_all) + ', "images": ['
    separator = "\n"
    for entry in tree:
        yield separator + json.dumps(_entry(entry))
        separator = ",\n"
    yield "\n]}\n"


def _entry(entry: TreeEntry) -> dict[str, object]:
    from dataclasses import asdict
    from datetime import UTC, datetime

    return {
        "path": entry.path,
        "format": entry.format,
        "lift": entry.lift,
        "stands_on": entry.stands_on,
        "backing_name": None if entry.backing is None else entry.backing.name,
        "backing_format": None if entry.backing is None else entry.backing.format,
        "images_above": entry.images_above,
        "virtual_size": entry.virtual_size_bytes,
        "disk_bytes": entry.disk_bytes,
        "frees_bytes": entry.frees_bytes,
        "modified_at": datetime.fromtimestamp(entry.modified_s, UTC).isoformat(timespec="seconds"),
        "internal_snapshots": entry.internal_snapshots,
        "encrypted": entry.encrypted,
        "outside": entry.is_outside,
        "in_use_by": [asdict(holder) for holder in entry.holders],
        "broken": None if entry.broken is None else asdict(entry.broken),
    }
