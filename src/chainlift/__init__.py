"""Measure what a long qcow2 snapshot chain costs, explain why, and lift that cost off.

**What is public**: the names in ``__all__``, with what docs/api.md says of them, which is made from their docstrings;
the command with its options, exit statuses and what it prints with ``--json`` (docs/json.md); and the logger
``chainlift`` (its names and levels, not its words). Everything else is private, whatever it is called, and may change
at any time.

From version 0.1.0 on, what is public goes on working for whoever uses it by keyword: parameters, attributes and kinds
of errors may be added, a name is removed only after a release that warned of it, and the changelog names each of these.

Each name is imported when it is first used, so that a ``chainlift --help`` loads nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from chainlift._version import __version__

if TYPE_CHECKING:
    from chainlift.chain import Chain, ChainPolicy, Kind, Layer, Runs, Window, open_chain
    from chainlift.errors import (
        AnswerIsNo,
        ChainliftError,
        ImageError,
        InputError,
        MissingToolError,
        OperationError,
        PolicyError,
        QemuCrashed,
        QemuError,
        UnknownStateError,
    )
    from chainlift.host.log import log_changes
    from chainlift.lift.build.copying import Copied
    from chainlift.lift.compare.ranges import Range
    from chainlift.lift.delete import Deletion, Kept
    from chainlift.lift.diff import Difference, open_difference
    from chainlift.lift.diff_export import ExportedDifference, export_difference
    from chainlift.lift.disk import Change, Disk
    from chainlift.lift.export import Served, export
    from chainlift.lift.find import FoundLift
    from chainlift.lift.flatten import Flattened, flatten
    from chainlift.lift.forest.active import active_layers
    from chainlift.lift.forest.candidates import Candidate
    from chainlift.lift.forest.tree import Broken, Tree, TreeEntry, open_tree
    from chainlift.lift.neighbours.processes import Holder
    from chainlift.lift.open import open_disk
    from chainlift.lift.plan import Choice, Plan, plan
    from chainlift.lift.prune.choose import Fate
    from chainlift.lift.prune.retention import Retention
    from chainlift.lift.prune.verb import Pruned, drop, prune
    from chainlift.lift.record.lifts import Lift
    from chainlift.lift.record.manifest import Manifest, Pointer
    from chainlift.lift.relink.plan import NewName, RelinkPlan, UnfoundError, UnresolvedName
    from chainlift.lift.relink.verb import Relinked, relink, undo_relink
    from chainlift.lift.tidy import Tidied
    from chainlift.lift.verbs import Lifted, Restored, index, restore, squash
    from chainlift.lift.verify import Finding, Verified, verify
    from chainlift.qemu.binary import Qemu
    from chainlift.qemu.find import find_qemu

__all__ = [  # noqa: RUF022 - in the order of docs/api.md, whose headings stand here
    "__version__",
    # Open a disk
    "open_disk",
    "Disk",
    "active_layers",
    "find_qemu",
    "Qemu",
    # Lift it
    "plan",
    "index",
    "squash",
    "restore",
    "verify",
    # Delete snapshots
    "prune",
    "drop",
    "Retention",
    # Write or serve a snapshot
    "flatten",
    "export",
    # Compare two snapshots
    "open_difference",
    "Difference",
    "Range",
    "export_difference",
    # Look at many images
    "open_tree",
    "Tree",
    "TreeEntry",
    "Holder",
    "Broken",
    "Candidate",
    # Find what was moved
    "relink",
    "undo_relink",
    # Read a chain
    "open_chain",
    "ChainPolicy",
    "Chain",
    "Layer",
    "Window",
    "Runs",
    "Kind",
    # What the verbs return
    "Plan",
    "Choice",
    "Lifted",
    "Manifest",
    "Pointer",
    "Deletion",
    "Kept",
    "Tidied",
    "Restored",
    "FoundLift",
    "Lift",
    "Change",
    "Verified",
    "Finding",
    "Pruned",
    "Fate",
    "Flattened",
    "ExportedDifference",
    "Copied",
    "Served",
    "Relinked",
    "RelinkPlan",
    "NewName",
    "UnresolvedName",
    # Log
    "log_changes",
    # Errors
    "ChainliftError",
    "AnswerIsNo",
    "InputError",
    "ImageError",
    "UnfoundError",
    "PolicyError",
    "MissingToolError",
    "OperationError",
    "QemuError",
    "QemuCrashed",
    "UnknownStateError",
]

_MODULES = {
    "chainlift.chain": ("Chain", "ChainPolicy", "Kind", "Layer", "Runs", "Window", "open_chain"),
    "chainlift.errors": (
        "AnswerIsNo",
        "ChainliftError",
        "ImageError",
        "InputError",
        "MissingToolError",
        "OperationError",
        "PolicyError",
        "QemuCrashed",
        "QemuError",
        "UnknownStateError",
    ),
    "chainlift.host.log": ("log_changes",),
    "chainlift.lift.build.copying": ("Copied",),
    "chainlift.lift.compare.ranges": ("Range",),
    "chainlift.lift.delete": ("Deletion", "Kept"),
    "chainlift.lift.diff": ("Difference", "open_difference"),
    "chainlift.lift.diff_export": ("ExportedDifference", "export_difference"),
    "chainlift.lift.disk": ("Change", "Disk"),
    "chainlift.lift.export": ("Served", "export"),
    "chainlift.lift.find": ("FoundLift",),
    "chainlift.lift.flatten": ("Flattened", "flatten"),
    "chainlift.lift.forest.active": ("active_layers",),
    "chainlift.lift.forest.candidates": ("Candidate",),
    "chainlift.lift.forest.tree": ("Broken", "Tree", "TreeEntry", "open_tree"),
    "chainlift.lift.neighbours.processes": ("Holder",),
    "chainlift.lift.open": ("open_disk",),
    "chainlift.lift.plan": ("Choice", "Plan", "plan"),
    "chainlift.lift.prune.choose": ("Fate",),
    "chainlift.lift.prune.retention": ("Retention",),
    "chainlift.lift.prune.verb": ("Pruned", "drop", "prune"),
    "chainlift.lift.record.lifts": ("Lift",),
    "chainlift.lift.record.manifest": ("Manifest", "Pointer"),
    "chainlift.lift.relink.plan": ("NewName", "RelinkPlan", "UnfoundError", "UnresolvedName"),
    "chainlift.lift.relink.verb": ("Relinked", "relink", "undo_relink"),
    "chainlift.lift.tidy": ("Tidied",),
    "chainlift.lift.verbs": ("Lifted", "Restored", "index", "restore", "squash"),
    "chainlift.lift.verify": ("Finding", "Verified", "verify"),
    "chainlift.qemu.binary": ("Qemu",),
    "chainlift.qemu.find": ("find_qemu",),
}
_FRONT_DOOR = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name in _FRONT_DOOR:
        return getattr(import_module(_FRONT_DOOR[name]), name)
    raise AttributeError(f"module 'chainlift' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
