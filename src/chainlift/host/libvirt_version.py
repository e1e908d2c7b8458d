"""Which libvirt is installed on this host."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess

#: The daemon with QEMU's driver, and the one that has all drivers in it.
_DAEMONS = ("virtqemud", "libvirtd")
#: Users do not always have it in their path.
_SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"
_VERSION = re.compile(r"\(libvirt\) (\d+)\.(\d+)\.(\d+)")
_TIMEOUT_S = 5.0

Version = tuple[int, int, int]


@functools.cache
def libvirt_version() -> Version | None:
    """Return the release of libvirt's daemon, None where there is none.

    Its program is asked, not the daemon that runs: nothing is connected to, and nothing can hang on a domain.
    """
    search = f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_PATH}"
    for name in _DAEMONS:
        program = shutil.which(name, path=search)
        if program is None:
            continue
        try:
            # Without a supervisor, which takes longer than the answer: it ends by itself.
            done = subprocess.run([program, "--version"], capture_output=True, timeout=_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        said = done.stdout.decode(errors="replace")
        if found := _VERSION.search(said):
            return int(found[1]), int(found[2]), int(found[3])
    return None
