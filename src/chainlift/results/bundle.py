"""A result directory as one archive, for others to check and to set beside theirs."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from typing import TYPE_CHECKING

from chainlift.errors import InputError, OperationError
from chainlift.results.store import LOCK, ResultDirectory

if TYPE_CHECKING:
    from pathlib import Path

#: Names and checksums of all files of a bundle, as sha256sum(1) reads them.
CHECKSUMS = "SHA256SUMS"


def write_bundle(directory: Path, out: Path) -> list[str]:
    """Write a result directory as ``.tar.gz``, with the checksum of each file beside it.

    The same results give the same bytes.

    :param out: the archive, which must not be there.
    :return: the names of the files in it.
    :raise InputError: if the directory is no result directory, or the archive is there or would lie in it.
    :raise OperationError: if it cannot be written; nothing is left of it then.
    """
    results = ResultDirectory.open(directory)
    results.environment()
    if out.resolve().is_relative_to(directory.resolve()):
        raise InputError("a bundle does not lie in what it is made of", path=out, hint="choose another --out")
    with results.lock():
        files = sorted(
            path for path in directory.rglob("*") if path.is_file() and not path.is_symlink() and path.name != LOCK
        )
        content = {str(path.relative_to(directory)): path.read_bytes() for path in files if path.name != CHECKSUMS}
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in content.items())
    content[CHECKSUMS] = sums.encode()
    root = out.name.removesuffix(".gz").removesuffix(".tar").removesuffix(".tgz")
    try:
        with out.open("xb") as raw:
            try:
                _pack(raw, root, content)
                raw.flush()
                os.fsync(raw.fileno())
            except BaseException:
                out.unlink(missing_ok=True)
                raise
    except FileExistsError as error:
        raise InputError("is there already", path=out, hint="choose another --out") from error
    except OSError as error:
        raise OperationError(f"cannot be written: {error.strerror}", path=out) from error
    return list(content)


def _pack(raw: io.BufferedWriter, root: str, content: dict[str, bytes]) -> None:
    import gzip

    # No dates, no owners: they are not the study's.
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name, data in content.items():
            member = tarfile.TarInfo(f"{root}/{name}")
            member.size, member.mode = len(data), 0o644
            archive.addfile(member, io.BytesIO(data))
