"""Files that libvirt's definitions name, that are not there any more, and that were moved: who names what.

What a definition says of layers below an image is taken out when the image's header is changed
(:mod:`chainlift.lift.domain.defined`). Which file is a domain's disk, only its owner can say.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from chainlift.lift.neighbours.ask_libvirt import read_definitions
from chainlift.units import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_NAMED_AT_MOST: Final = 3


def say_moved(found: Mapping[str, str], images: Iterable[str]) -> list[str]:
    """Say which definitions name files that are not there and are somewhere else now, and how to change them.

    :param found: a path that leads nowhere -> the file that it was found to be.
    :param images: others that may have been moved: one alone of a file's name is taken to be that.
    :return: a line for each definition; and one where libvirt is there and does not tell.
    """
    definitions = read_definitions()
    by_name: dict[str, list[str]] = {}
    for path in images:
        by_name.setdefault(os.path.basename(path), []).append(path)  # noqa: PTH119 - any bytes
    moved: dict[tuple[str, str | None], dict[str, str]] = {}
    with_stores = set()
    for name, namings in definitions.missing().items():
        there = found.get(name) or _only(by_name.get(os.path.basename(name), []))  # noqa: PTH119 - any bytes
        for naming in namings if there is not None else ():
            moved.setdefault((naming.domain, naming.part), {})[name] = str(there)
            if naming.element == "<backingStore>":
                with_stores.add((naming.domain, naming.part))
    said = [_line(*key, places, has_stores=key in with_stores) for key, places in moved.items()]
    if definitions.problem is not None:
        said.append(f"libvirt's definitions may name what was moved: {definitions.problem}")
    return said


def _only(paths: list[str]) -> str | None:
    return paths[0] if len(paths) == 1 else None


def _line(domain: str, part: str | None, places: Mapping[str, str], *, has_stores: bool) -> str:
    who = f"domain {domain}" if part is None else f"{part} of domain {domain}"
    listed = [f"{old} is {new} now" for old, new in places.items()]
    named = ", ".join([*listed[:_NAMED_AT_MOST], *(["..."] if len(listed) > _NAMED_AT_MOST else [])])
    files = f"{counted(len(places), 'file')} that {'is' if len(places) == 1 else 'are'} not there"
    rest = "; what it says in <backingStore> can be left out" if has_stores else ""
    return f"{who} names {files}: {named}; {_editor(domain, part)} changes it{rest}"


def _editor(domain: str, part: str | None) -> str:
    if part is None:
        return f"virsh edit {domain}"
    kind, _, name = part.partition(" ")
    if kind not in ("snapshot", "checkpoint"):
        return f"virsh managedsave-edit {domain}"
    return f"virsh {kind}-edit {domain} {name}"
