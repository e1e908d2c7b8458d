"""Runs a command as a unit confines it: ``python confined.py UNIT COMMAND...``; as far as that goes without systemd.

Its system call filter (read with systemd-analyze, made with the libseccomp that systemd has), its capabilities, no new
privileges, and no memory that is both writable and executable.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

_PR_SET_NO_NEW_PRIVS, _PR_SET_MDWE = 38, 65
_ALLOW, _EPERM = 0x7FFF0000, 0x00050001


def setting(unit: Path, name: str) -> list[str]:
    """Return the words of a setting of a unit."""
    lines = unit.read_text().replace("\\\n", " ").splitlines()
    return [word for line in lines if line.startswith(f"{name}=") for word in line.partition("=")[2].split()]


def calls(group: str) -> set[str]:
    """Return the system calls of one of systemd's groups."""
    done = subprocess.run(["systemd-analyze", "syscall-filter", "--no-pager", group], capture_output=True, text=True)
    words = [line.strip() for line in done.stdout.splitlines()[1:]]
    found: set[str] = set()
    for word in words:
        if word and not word.startswith("#"):
            found |= calls(word) if word.startswith("@") else {word}
    return found


def main() -> None:
    """Confine ourselves and become the command."""
    unit, command = Path(sys.argv[1]), sys.argv[2:]
    allowed = {call for group in setting(unit, "SystemCallFilter") for call in calls(group)}
    assert "execve" in allowed
    capabilities = [f"+{word.removeprefix('CAP_').lower()}" for word in setting(unit, "CapabilityBoundingSet")]
    libc, seccomp = ctypes.CDLL(None), ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    filters = ctypes.c_void_p(seccomp.seccomp_init(_EPERM))
    for call in allowed:
        number = seccomp.seccomp_syscall_resolve_name(call.encode())
        if number >= 0:
            assert seccomp.seccomp_rule_add(filters, _ALLOW, number, 0) == 0
    if setting(unit, "MemoryDenyWriteExecute") == ["yes"]:
        libc.prctl(_PR_SET_MDWE, 1, 0, 0, 0)  # since Linux 6.3
    assert libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert seccomp.seccomp_load(filters) == 0
    os.execvp("setpriv", ["setpriv", "--inh-caps=-all", f"--bounding-set=-all,{','.join(capabilities)}", *command])


if __name__ == "__main__":
    main()
