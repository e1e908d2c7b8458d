"""Runs a command until it ends, and reaps the orphans that it leaves meanwhile.

libvirt waits until a QEMU that it has ended is gone, and QEMU is an orphan. In a container's first process that looks
after orphans only now and then, each takes a second or two. SIGTERM is handed on, and SIGUSR1 as SIGKILL.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys

#: linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36


def main() -> int:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    child = subprocess.Popen(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    signal.signal(signal.SIGUSR1, lambda *_: child.kill())
    while True:
        ended, status = os.wait()
        if ended == child.pid:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
