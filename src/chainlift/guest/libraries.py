"""The shared libraries that programs need, found in an unpacked root by reading ELF files.

``ldd`` would run the program, with the host's libraries and not the root's. Field names are those of ``elf.h``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from chainlift.errors import OperationError

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 0, 1, 5, 15, 29
#: Where Debian's dynamic loader looks (and /usr/lib/.../ceph and the like come from a file's own RUNPATH).
_PLACES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", "lib", "usr/lib64", "usr/lib")


@dataclass(frozen=True)
class Needs:
    """What an ELF file says that it needs."""

    #: The dynamic loader's path, or None in a library or a static program.
    interpreter: str | None
    libraries: tuple[str, ...]
    run_path: tuple[str, ...]


def read_needs(path: Path) -> Needs:
    """Read what a 64-bit little-endian ELF file needs.

    :raise OperationError: if it is none.
    """
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise OperationError("is no 64-bit ELF file", path=path)
    e_phoff, e_phentsize, e_phnum = *struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54)
    loads: list[tuple[int, int, int]] = []
    dynamic: list[tuple[int, int]] = []
    interpreter = None
    for index in range(e_phnum):
        p_type, _, p_offset, p_vaddr, _, p_filesz = struct.unpack_from("<IIQQQQ", data, e_phoff + index * e_phentsize)
        if p_type == _PT_LOAD:
            loads.append((p_vaddr, p_offset, p_filesz))
        elif p_type == _PT_INTERP:
            interpreter = data[p_offset : p_offset + p_filesz].rstrip(b"\0").decode()
        elif p_type == _PT_DYNAMIC:
            dynamic = list(struct.iter_unpack("<QQ", data[p_offset : p_offset + p_filesz - p_filesz % 16]))
    if not dynamic:
        return Needs(interpreter, (), ())
    entries = dynamic[: next((i for i, (tag, _) in enumerate(dynamic) if tag == _DT_NULL), len(dynamic))]
    address = next(value for tag, value in entries if tag == _DT_STRTAB)
    strings = next(address - vaddr + offset for vaddr, offset, size in loads if vaddr <= address < vaddr + size)

    def text(value: int) -> str:
        return data[strings + value : data.index(b"\0", strings + value)].decode()

    run_path = next((text(value) for tag, value in entries if tag in (_DT_RUNPATH, _DT_RPATH)), "")
    return Needs(
        interpreter,
        tuple(text(value) for tag, value in entries if tag == _DT_NEEDED),
        tuple(place for place in run_path.split(":") if place),
    )


def closure(root: Path, programs: list[Path]) -> dict[PurePosixPath, Path]:
    """Return every library and dynamic loader that the programs need: its place in a guest -> the file on this host.

    Libraries all go to one directory where the loader looks by itself; loaders go where the programs name them.

    :param root: a directory that packages were unpacked in.
    :raise OperationError: if a library is not there.
    """
    found: dict[PurePosixPath, Path] = {}
    todo = list(programs)
    while todo:
        path = todo.pop()
        needs = read_needs(path)
        if needs.interpreter is not None:
            found[PurePosixPath(needs.interpreter)] = _find(root, Path(needs.interpreter).name, ())
        for name in needs.libraries:
            place = PurePosixPath("/lib/x86_64-linux-gnu", name)
            if place not in found:
                found[place] = _find(root, name, needs.run_path)
                todo.append(found[place])
    return found


def _find(root: Path, name: str, run_path: tuple[str, ...]) -> Path:
    for place in (*(place.lstrip("/") for place in run_path), *_PLACES):
        path = root / place / name
        # A link may be absolute, which is meant relative to the root.
        for _ in range(8):
            if not path.is_symlink():
                break
            target = Path(path.readlink())
            path = root / str(target).lstrip("/") if target.is_absolute() else path.parent / target
        if path.is_file():
            return path
    raise OperationError(f"no library {name} in the unpacked packages", path=root)
