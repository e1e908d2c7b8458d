"""Kernel modules in the order in which they must be loaded.

A kernel package brings no ``modules.dep``: depmod makes it when the package is installed, and ours never is. What a
module needs stands in the module itself, in its ``.modinfo`` section (``modinfo_tags`` in scripts/mod/modpost.c).
"""

from __future__ import annotations

import lzma
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chainlift.errors import OperationError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")
_SUFFIX = re.compile(r"\.ko(\.xz|\.zst)?$")


@dataclass(frozen=True)
class Module:
    """A module, unpacked if it was compressed."""

    name: str
    data: bytes


def load_order(directory: Path, wanted: Iterable[str]) -> list[Module]:
    """Return the wanted modules and all that they need, what is needed first.

    :param directory: a kernel's directory, ``lib/modules/RELEASE``.
    :param wanted: names with either ``-`` or ``_``; what is built into this kernel is left out.
    :raise OperationError: if the kernel has a module neither as a file nor built in.
    """
    files = {
        _SUFFIX.sub("", path.name).replace("-", "_"): path
        for path in directory.rglob("*.ko*")
        if _SUFFIX.search(path.name)
    }
    builtin = {
        _SUFFIX.sub("", line.rsplit("/", 1)[-1]).replace("-", "_")
        for line in (directory / "modules.builtin").read_text().splitlines()
    }
    order: dict[str, Module] = {}

    def add(name: str) -> None:
        name = name.replace("-", "_")
        if name in order or name in builtin:
            return
        if name not in files:
            raise OperationError(f"the kernel has no module {name}", path=directory)
        data = _read(files[name])
        match = _DEPENDS.search(data)
        for needed in match[1].decode().split(",") if match else []:
            if needed:
                add(needed)
        order[name] = Module(name, data)

    for name in wanted:
        add(name)
    return list(order.values())


def _read(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".zst":
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data
