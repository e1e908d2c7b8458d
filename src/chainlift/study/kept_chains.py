"""Built chains that are kept: which there are, what they take, and deleting them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from chainlift.errors import ChainliftError, InputError
from chainlift.host.cache import cache_dir
from chainlift.study.chain_store import ChainDirectory

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class KeptChain:
    """A chain in the directory of chains."""

    name: str
    path: Path
    #: Layers over the base; None where it is not finished.
    length: int | None
    bytes_on_disk: int
    #: When its files were last changed.
    used_at: datetime

    def as_data(self) -> dict[str, object]:
        """Return it as JSON has it."""
        return {
            "name": self.name,
            "path": str(self.path),
            "length": self.length,
            "bytes_on_disk": self.bytes_on_disk,
            "changed_at": self.used_at.isoformat(),
        }


def kept_chains(directory: Path | None) -> list[KeptChain]:
    """Return the chains that are kept, by name.

    :param directory: where; chainlift's cache where it is not given.
    """
    root = _root(directory)
    found = []
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        if not _is_chain(path):
            continue
        try:
            manifest = ChainDirectory(path).manifest()
        except ChainliftError:
            manifest = None
        status = [file.stat() for file in path.iterdir() if file.is_file()]
        found.append(
            KeptChain(
                name=path.name,
                path=path,
                length=None if manifest is None else manifest.shape.length,
                bytes_on_disk=sum(one.st_blocks * 512 for one in status),
                used_at=datetime.fromtimestamp(max((one.st_mtime for one in status), default=0), UTC),
            )
        )
    return found


def delete_chain(directory: Path | None, name: str) -> None:
    """Delete a chain that is kept.

    :raise InputError: if there is none of that name.
    :raise OperationError: if a study uses it.
    """
    root = _root(directory)
    path = root / name
    if path.parent != root or not _is_chain(path):
        raise InputError(f"there is no chain {name!r}", path=root, hint="chainlift study chains lists them")
    chain = ChainDirectory(path)
    with chain.lock(exclusive=True):
        # Without its manifest it is no chain any more, whatever is left of it.
        (path / "chain.json").unlink(missing_ok=True)
        shutil.rmtree(path)


def _root(directory: Path | None) -> Path:
    return cache_dir("chains") if directory is None else directory.absolute()


def _is_chain(path: Path) -> bool:
    """Whether a directory holds what a study builds, and nothing that it does not."""
    return (
        path.is_dir() and not path.is_symlink() and any((path / n).is_file() for n in ("chain.json", "snapshots.jsonl"))
    )
