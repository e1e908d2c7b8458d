"""QEMUs of which one function was taken out (:mod:`chainlift.qemu.ablation`): private copies, in chainlift's cache.

A copy is a QEMU like any other, named ``QEMU,without=FUNCTION``. What it is a copy of is never changed, and a copy of
an original that has changed since is not used any more.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from chainlift.errors import InputError, MissingToolError
from chainlift.host.cache import cache_dir
from chainlift.profiling.elf import read_elf
from chainlift.qemu.ablation import KNOWN, change_of
from chainlift.qemu.binary import WITHOUT
from chainlift.qemu.read_check import check_reads

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from chainlift.qemu.binary import Qemu, Tool

_FACTS: Final = "ablated.json"
#: What a system emulator looks for beside the directory that its program is in: firmware, and modules.
#: (``get_relocated_path()`` in util/cutils.c.)
_BESIDE: Final = ("share", "lib", "lib64", "libexec")
#: The same of one in a build directory, beside the program itself.
_IN_A_BUILD: Final = ("qemu-bundle", "pc-bios")
_TOOLS: Final[tuple[Tool, ...]] = ("img", "io", "storage-daemon", "system")


def ablate(original: Qemu, function: str, progress: Callable[[str], None] = lambda _: None) -> Qemu:
    """Make a copy of a QEMU in which one function returns true at once, or return the one that is there.

    Nothing is kept of a copy that does not read what it should.

    :param original: what is copied.
    :param function: as QEMU's source calls it.
    :raise InputError: if nothing is known of the function, or of its code in one of the programs.
    :raise QemuError: if the copy does not read a chain right.
    """
    if original.without:
        raise InputError(f"{original.label} is a copy already", hint="one function at a time is taken out")
    label = f"{original.label}{WITHOUT}{function}"
    with contextlib.suppress(MissingToolError):
        return find_ablated(original, function)
    programs = _programs(original)
    # Looked at before they are read: what is changed meanwhile is then another QEMU than the copy's.
    identities = {tool: _identity(path) for tool, path in programs.items()}
    elves = {tool: read_elf(path) for tool, path in programs.items()}
    changes = {tool: change_of(elf, function) for tool, elf in elves.items()}
    target = _target(label)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        (temporary / "bin").mkdir(parents=True)
        for tool, path in programs.items():
            progress(f"copying {path.name} without {changes[tool].symbol}")
            copy = temporary / "bin" / path.name
            copy.write_bytes(changes[tool].applied(elves[tool].data))
            copy.chmod(0o755)
        if original.source in ("host", "path"):
            _link_surroundings(programs, temporary)
        progress("reading a chain with each of them")
        check_reads(_qemu_in(temporary, original, label))
        facts = {
            "of": original.label,
            "function": function,
            "version_text": original.version_text,
            "programs": {tool: {"symbol": changes[tool].symbol} | identities[tool] for tool in programs},
        }
        (temporary / _FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        with contextlib.suppress(FileNotFoundError):  # the copy of an original that has changed since
            target.rename(temporary / "old")
        # Where somebody else has made it meanwhile, theirs stays.
        with contextlib.suppress(OSError):
            temporary.rename(target)
            shutil.rmtree(target / "old", ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return find_ablated(original, function)


def find_ablated(original: Qemu, function: str, *, need: Collection[Tool] = ()) -> Qemu:
    """Return a copy that was made before.

    :param original: that it would be of.
    :param function: that is not in it.
    :param need: the programs that must be there.
    :raise MissingToolError: if it was not made, its original is another one now, or one of the programs is not there.
    """
    spec, label = original.label, f"{original.label}{WITHOUT}{function}"
    target = _target(label)
    hint = f"run: chainlift qemu ablate {spec} {function}"
    try:
        facts = json.loads((target / _FACTS).read_text(encoding="utf-8"))
        made_of: dict[str, Any] = {tool: program["path"] for tool, program in facts["programs"].items()}
        known = {tool: {key: program[key] for key in _IDENTITY} for tool, program in facts["programs"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise MissingToolError(f"there is no copy of {spec} without {function}", hint=hint) from None
    now = _programs(original)
    if {tool: str(path) for tool, path in now.items()} != made_of or any(
        _identity(path) != known[tool] for tool, path in now.items()
    ):
        raise MissingToolError(f"{spec} is another QEMU than the copy without {function} was made of", hint=hint)
    found = _qemu_in(target, original, label)
    for tool in need:
        found.path(tool)
    return found


def ablated_names() -> list[str]:
    """Return the names of the copies in the cache."""
    found = []
    for path in cache_dir("qemu").glob(f"without-*/{_FACTS}"):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            facts = json.loads(path.read_text(encoding="utf-8"))
            found.append(f"{facts['of']}{WITHOUT}{facts['function']}")
    return sorted(found)


def remove_ablated(label: str) -> None:
    """Delete a copy from the cache.

    :raise MissingToolError: if it is not there.
    """
    if label not in ablated_names():
        raise MissingToolError(f"there is no {label}", hint="chainlift qemu list shows what is there")
    shutil.rmtree(_target(label))


_IDENTITY: Final = ("path", "size_bytes", "modified_ns")


def _identity(path: Path) -> dict[str, object]:
    """Return what an unchanged program looks the same by."""
    found = path.stat()
    return {"path": str(path), "size_bytes": found.st_size, "modified_ns": found.st_mtime_ns}


def _programs(qemu: Qemu) -> dict[Tool, Path]:
    """Return the programs of a QEMU, each where its file is."""
    found: dict[Tool, Path] = {}
    for tool in _TOOLS:
        with contextlib.suppress(MissingToolError):
            found[tool] = qemu.path(tool).resolve()
    return found


def _qemu_in(directory: Path, original: Qemu, label: str) -> Qemu:
    paths = {tool: directory / "bin" / path.name for tool, path in _programs(original).items()}
    return replace(
        original,
        label=label,
        system=paths.get("system"),
        img=paths.get("img"),
        io=paths.get("io"),
        storage_daemon=paths.get("storage-daemon"),
        without=label.rpartition(WITHOUT)[2],
        copy_of=original.label,
    )


def _link_surroundings(programs: dict[Tool, Path], directory: Path) -> None:
    """Let the copies find what their originals find beside themselves."""
    for program in programs.values():
        for there, names, here in (
            (program.parent.parent, _BESIDE, directory),
            (program.parent, _IN_A_BUILD, directory / "bin"),
        ):
            for name in names:
                if (there / name).is_dir() and not (here / name).is_symlink():
                    (here / name).symlink_to(there / name)


def _target(label: str) -> Path:
    function = label.rpartition(WITHOUT)[2]
    if function not in KNOWN:
        raise InputError(f"nothing is known of what {function} may be replaced by", hint=f"known: {', '.join(KNOWN)}")
    return cache_dir("qemu") / f"without-{function}-{hashlib.sha256(os.fsencode(label)).hexdigest()[:12]}"
