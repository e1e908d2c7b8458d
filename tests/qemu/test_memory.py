import os
import subprocess
import sys
import time

from chainlift.qemu.memory import MemoryWatch, read_resident_set

CODE = """
import mmap, os, sys
def touch(memory):
    for at in range(0, len(memory), 4096): memory[at] = 1
own = bytearray(24 << 20); touch(own)
file = os.memfd_create("ram"); os.truncate(file, 64 << 20)
guest = mmap.mmap(file, 64 << 20); touch(guest)
print("ready", flush=True); sys.stdin.readline()
"""


def test_a_memfd_is_not_the_processs_own_memory():
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        watch = MemoryWatch(child.pid)
        child.stdout.readline()
        now = read_resident_set(child.pid)
        assert now.shared_bytes >= 64 << 20
        assert 24 << 20 <= now.own_bytes < 64 << 20
        while watch.peak_own_bytes < 24 << 20:  # the next sample has it
            time.sleep(0.01)
        child.stdin.write(b"\n")
        child.stdin.close()
        child.wait()
        assert 24 << 20 <= watch.stop() < 64 << 20
        assert read_resident_set(child.pid) is None


def test_a_watch_can_be_stopped_while_the_process_runs():
    assert MemoryWatch(os.getpid()).stop() > 1 << 20
