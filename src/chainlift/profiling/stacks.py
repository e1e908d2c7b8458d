"""Stacks that a profiler has seen, and how often: reading and writing the formats that other viewers take.

The *folded* format is Brendan Gregg's: one stack a line, frames from the root to the leaf joined by ``;``, a space and
the number of samples. *Speedscope* is the JSON of https://www.speedscope.app (type ``sampled``).
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chainlift.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

#: Frames from the root to the leaf.
Stack = tuple[str, ...]

#: How a frame without a name is written; :func:`is_unknown` recognises it.
UNKNOWN = "[unknown]"
#: The root of what a guest's virtual CPUs did: emulated code, for the most part.
VCPU = "[vCPU]"
_NOT_IN_A_FRAME = re.compile(r"[;\s]+")


@dataclass(frozen=True)
class Stacks:
    """Stacks and how many samples each had."""

    counts: Mapping[Stack, int]

    @property
    def total(self) -> int:
        """All samples."""
        return sum(self.counts.values())

    def self_samples(self) -> dict[str, int]:
        """Return samples by the function that was running: the leaf. Most first."""
        found: Counter[str] = Counter()
        for stack, count in self.counts.items():
            if stack:
                found[stack[-1]] += count
        return dict(found.most_common())

    def samples_with(self, names: Iterable[str]) -> int:
        """Return the samples in which any of these functions is on the stack, once each however often it is there."""
        wanted = set(names)
        return sum(count for stack, count in self.counts.items() if not wanted.isdisjoint(stack))

    def share_of(self, *names: str) -> float:
        """Return the share (0 to 1) of samples with any of these functions on the stack; 0 without samples."""
        return self.samples_with(names) / self.total if self.total else 0.0

    def without(self, root: str) -> Stacks:
        """Return the stacks that do not begin with this frame."""
        return Stacks({stack: count for stack, count in self.counts.items() if stack[:1] != (root,)})

    @property
    def unknown_share(self) -> float:
        """The share of samples whose running function has no name."""
        unknown = sum(count for stack, count in self.counts.items() if not stack or is_unknown(stack[-1]))
        return unknown / self.total if self.total else 0.0


def is_unknown(frame: str) -> bool:
    """Say whether a frame is a function without a name: ``[unknown]``, ``[qemu-img+0x1f2a0]``."""
    return frame.startswith("[") and ("+0x" in frame or frame.startswith(UNKNOWN[:-1]))


def merge(several: Iterable[Stacks]) -> Stacks:
    """Return the samples of several profiles as one."""
    found: Counter[Stack] = Counter()
    for stacks in several:
        found.update(stacks.counts)
    return Stacks(found)


def read_folded(text: str) -> Stacks:
    """Read folded stacks; :raise InputError: if a line is none."""
    found: Counter[Stack] = Counter()
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        stack, _, count = line.rpartition(" ")
        if not count.isascii() or not count.isdigit():
            raise InputError(f"line {number} of folded stacks does not end in a number of samples")
        found[tuple(stack.split(";")) if stack else ()] += int(count)
    return Stacks(found)


def write_folded(stacks: Stacks) -> str:
    """Write folded stacks, in a stable order."""
    lines = (f"{';'.join(map(clean_frame, stack))} {count}\n" for stack, count in sorted(stacks.counts.items()))
    return "".join(lines)


def clean_frame(name: str) -> str:
    """Return a frame's name without what separates frames in the folded format."""
    return _NOT_IN_A_FRAME.sub("_", name) or UNKNOWN


def to_speedscope(stacks: Stacks, name: str) -> dict[str, object]:
    """Return the speedscope file of a profile, ready for :func:`json.dumps`."""
    index: dict[str, int] = {}
    samples = []
    weights = []
    for stack, count in sorted(stacks.counts.items()):
        samples.append([index.setdefault(frame, len(index)) for frame in stack])
        weights.append(count)
    return {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "name": name,
        "exporter": "chainlift",
        "shared": {"frames": [{"name": frame} for frame in index]},
        "profiles": [
            {
                "type": "sampled",
                "name": name,
                "unit": "none",
                "startValue": 0,
                "endValue": sum(weights),
                "samples": samples,
                "weights": weights,
            }
        ],
    }


def profile_name(variant: str, qemu: str, length: int, lift: str = "none", repeat: int = 0) -> str:
    """Return the name, without an ending, that a profile's files have below ``profiles/`` of a result directory.

    :param variant: what was profiled.
    :param qemu: its label.
    :param length: of the chain, in layers.
    :param lift: that the disk stood on.
    :param repeat: its number, from 0.
    """
    parts = [variant, qemu, f"{length}-layers", *([lift] if lift != "none" else []), *([f"{repeat}"] if repeat else [])]
    return "--".join(re.sub(r"[^A-Za-z0-9.-]+", "-", part).strip("-.") for part in parts)


def save_stacks(directory: Path, name: str, stacks: Stacks) -> list[Path]:
    """Write ``NAME.folded.gz`` and ``NAME.speedscope.json.gz``; return their paths.

    The same stacks give the same bytes. Plain stacks of a long chain are megabytes of the same few names: compressed
    they are a hundredth of that, and speedscope opens them as they are.

    :param directory: made if need be.
    :param name: of the files, without an ending.
    :param stacks: what was recorded.
    """
    directory.mkdir(parents=True, exist_ok=True)
    texts = {".folded.gz": write_folded(stacks), ".speedscope.json.gz": json.dumps(to_speedscope(stacks, name))}
    written = []
    for ending, text in texts.items():
        path = directory / f"{name}{ending}"
        path.write_bytes(gzip.compress(text.encode(), mtime=0))
        written.append(path)
    return written


def load_stacks(path: Path) -> Stacks:
    """Read folded stacks from a file, compressed or not.

    :raise InputError: if it cannot be read or holds something else.
    """
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read as folded stacks: {error}", path=path) from error
    try:
        return read_folded(text)
    except InputError as error:
        raise InputError(error.what, path=path) from error
