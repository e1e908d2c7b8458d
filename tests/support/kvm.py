"""KVM on a host without it: a QEMU that is asked for KVM and emulates.

It is the host's own QEMU behind a script, which notes what it was asked for. So everything on our side of QEMU's
command line is as on a host with KVM: how KVM is found, what QEMU is told, what is recorded and said.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from chainlift.qemu.find import find_qemu
from chainlift.qemu.vm import TCG_CPU

if TYPE_CHECKING:
    from pathlib import Path

    from chainlift.qemu.binary import Qemu

#: An emulated timer may be late on a busy machine: a kernel under KVM leaves that check out by itself.
_SCRIPT = """#!{python}
import json, os, sys
words = sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(json.dumps(words) + "\\n")
for at, word in enumerate(words[:-1]):
    if word == "-accel" and words[at + 1] == "kvm":
        words[at + 1] = "tcg"
    elif word == "-cpu" and words[at + 1] == "host":
        words[at + 1] = {cpu!r}
    elif word == "-append":
        words[at + 1] += " no_timer_check clearcpuid=cx16"
os.execv({qemu!r}, [{qemu!r}, *words])
"""


def kvm_without_kvm(folder: Path) -> Qemu:
    """Make a QEMU in a directory; what its system emulator was asked for is in ``asked.jsonl`` there, a list a line."""
    host = find_qemu("host")
    text = _SCRIPT.format(python=sys.executable, log=str(folder / "asked.jsonl"), cpu=TCG_CPU, qemu=str(host.system))
    (folder / "bin").mkdir(parents=True)
    system = folder / "bin" / "qemu-system-x86_64"
    system.write_text(text)
    system.chmod(0o755)
    for tool in ("img", "io", "storage-daemon"):
        path = host.path(tool)
        (folder / "bin" / path.name).symlink_to(path.resolve())
    return find_qemu(str(folder))
