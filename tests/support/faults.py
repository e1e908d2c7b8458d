"""Stops a verb at each of its file-system calls, or makes the call fail: with ptrace, in real processes, on real files.

The verb runs in a forked child (everything is imported already: a point costs milliseconds, not an interpreter's
start). A seccomp filter stops it, and every program it starts, at each call that can touch a file; those that touch the
directory under test are numbered. At the chosen number every process is killed before or right after the call, or the
call returns an error, or is cut short.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import struct
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

Fault = Literal["kill before", "kill after", "ENOSPC", "EIO", "short"]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long
_TRACEME, _CONT, _GETREGS, _SETREGS, _SYSCALL, _SETOPTIONS = 0, 7, 12, 13, 24, 0x4200
_OPTIONS = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x80 | 0x100000  # sysgood, fork, vfork, clone, exec, seccomp, exitkill
_EVENT_SECCOMP = 7
_WALL = 0x40000000

#: Number on x86-64 -> name, where its path or descriptor is (argument number), and whether it changes anything.
_BY_PATH = {
    2: ("open", 0), 76: ("truncate", 0), 82: ("rename", 0), 83: ("mkdir", 0), 84: ("rmdir", 0), 85: ("creat", 0),
    86: ("link", 0), 87: ("unlink", 0), 88: ("symlink", 1), 90: ("chmod", 0), 257: ("openat", 1), 258: ("mkdirat", 1),
    263: ("unlinkat", 1), 264: ("renameat", 1), 265: ("linkat", 1), 316: ("renameat2", 1),
}  # fmt: skip
_BY_DESCRIPTOR = {
    0: ("read", 0), 1: ("write", 0), 16: ("ioctl", 0), 17: ("pread64", 0), 18: ("pwrite64", 0), 20: ("writev", 0),
    40: ("sendfile", 0), 73: ("flock", 0), 74: ("fsync", 0), 75: ("fdatasync", 0), 77: ("ftruncate", 0),
    217: ("getdents64", 0), 277: ("sync_file_range", 0), 285: ("fallocate", 0), 295: ("preadv", 0),
    296: ("pwritev", 0), 326: ("copy_file_range", 2), 328: ("pwritev2", 0),
}  # fmt: skip
_READ_ONLY = {"read", "pread64", "preadv", "flock", "getdents64"}
_OPENS = {"open", "openat"}  # their flags stand after the path
_CREATES = os.O_CREAT | os.O_TRUNC
_CUT_SHORT = {"write": 2, "pwrite64": 2, "copy_file_range": 4}  # argument that is the length
_REGISTERS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")


class _Regs(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_ulonglong)
        for name in (
            "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
            "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
        )
    ]  # fmt: skip


@dataclass
class Trace:
    """What a run did."""

    #: Name of each numbered call, in order.
    calls: list[str] = field(default_factory=list)
    #: Whether the fault was applied (a call cannot always be cut short).
    hit: bool = False
    #: The verb's exit status, None if it was killed.
    status: int | None = None
    stderr: str = ""


def run(
    verb: Callable[[], int], under: Path, *, point: int | None = None, fault: Fault | None = None, reads: bool = False
) -> Trace:
    """Run ``verb`` in a child, with one fault at the numbered call, or none.

    :param under: only calls on files in this directory count.
    :param reads: number the calls that only read, too.
    """
    trace = Trace()
    stderr_r, stderr_w = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _child(verb, stderr_w, reads=reads)
    os.close(stderr_w)
    _, status = os.waitpid(child, 0)
    assert os.WIFSTOPPED(status)
    _ptrace(_SETOPTIONS, child, 0, _OPTIONS)
    _ptrace(_CONT, child, 0, 0)
    alive, leaving, killed = {child}, set(), False
    # Who was forked just before its parent was killed has not stopped for us yet, and would stand still for ever.
    while alive or (alive := _traced()):
        if killed:
            _kill(alive)
        try:
            pid, status = os.waitpid(-1, _WALL)
        except ChildProcessError:
            break
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            alive.discard(pid)
            if pid == child:
                trace.status = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
            continue
        alive.add(pid)
        event, deliver = status >> 16, 0
        number = os.WSTOPSIG(status)
        if pid in leaving:
            killed = True
            leaving.clear()
            continue
        request = _CONT
        if event == _EVENT_SECCOMP:
            try:
                call = _relevant(pid, under)
            except (ProcessLookupError, FileNotFoundError):
                call = None  # somebody has killed it meanwhile
            if call is not None:
                here = len(trace.calls)
                trace.calls.append(call)
                if here == point and fault is not None:
                    if fault == "kill before":
                        trace.hit = killed = True
                        continue
                    if fault == "kill after":
                        trace.hit = True
                        leaving.add(pid)
                        request = _SYSCALL
                    else:
                        trace.hit = _fail(pid, call, fault)
        elif event == 0 and number not in (signal.SIGTRAP, signal.SIGSTOP, signal.SIGTRAP | 0x80):
            deliver = number
        with contextlib.suppress(ProcessLookupError):
            _ptrace(request, pid, 0, deliver)
    with os.fdopen(stderr_r, errors="replace") as stream:
        trace.stderr = stream.read()
    return trace


def _child(verb: Callable[[], int], stderr: int, *, reads: bool) -> None:
    code = 70
    try:
        os.dup2(stderr, 2)
        os.set_inheritable(2, True)
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        _ptrace(_TRACEME, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        _filter(reads=reads)
        try:
            code = verb()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        sys.stderr.flush()
    except BaseException as error:  # noqa: BLE001
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def _filter(*, reads: bool) -> None:
    """Trace the calls that can touch a file, let in all others (a classic BPF program).

    Without ``reads``, those that only read are let in too: a stop of each takes a tenth of a run's time.
    """
    load, equal, any_bit, give = 0x20, 0x15, 0x45, 0x06
    allow, trace = (give, 0, 0, 0x7FFF0000), (give, 0, 0, 0x7FF00000)
    named = {**_BY_PATH, **_BY_DESCRIPTOR}
    number_at, arguments_at = 0, 16
    code = [(load, 0, 0, number_at)]
    for number, (name, argument) in sorted(named.items()):
        if reads or not (name in _READ_ONLY or name in _OPENS):
            code += [(equal, 0, 1, number), trace]
        elif name in _OPENS:
            flags_at = arguments_at + 8 * (argument + 1)
            code += [(equal, 0, 4, number), (load, 0, 0, flags_at), (any_bit, 0, 1, _CREATES), trace, allow]
    code.append(allow)
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in code))
    header = ctypes.create_string_buffer(struct.pack("=H6xQ", len(code), ctypes.addressof(program)))
    if _libc.prctl(38, 1, 0, 0, 0) or _libc.prctl(22, 2, header, 0, 0):
        raise OSError(ctypes.get_errno(), "no seccomp filter")


def _ptrace(request: int, pid: int, address: int, data: int) -> None:
    if _libc.ptrace(request, pid, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace {request}: {os.strerror(number)}")


def _registers(pid: int) -> _Regs:
    regs = _Regs()
    _ptrace(_GETREGS, pid, 0, ctypes.addressof(regs))
    return regs


def _relevant(pid: int, under: Path) -> str | None:
    regs = _registers(pid)
    number = regs.orig_rax
    if number in _BY_DESCRIPTOR:
        name, argument = _BY_DESCRIPTOR[number]
        try:
            target = str(Path(f"/proc/{pid}/fd/{ctypes.c_int(getattr(regs, _REGISTERS[argument])).value}").readlink())
        except OSError:
            return None
    else:
        name, argument = _BY_PATH[number]
        target = _string(pid, getattr(regs, _REGISTERS[argument]))
        if not target.startswith("/"):
            target = f"{Path(f'/proc/{pid}/cwd').readlink()}/{target}"
    root = str(under)
    return name if target == root or target.startswith(root + "/") else None


def _string(pid: int, address: int) -> str:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:  # noqa: PTH123
        memory.seek(address)
        found = b""
        while b"\0" not in found and len(found) < 4096:
            part = memory.read(256 - (address + len(found)) % 256)
            if not part:
                break
            found += part
    return os.fsdecode(found.partition(b"\0")[0])


def _fail(pid: int, call: str, fault: Fault) -> bool:
    regs = _registers(pid)
    if fault == "short":
        if call not in _CUT_SHORT:
            return False
        register = _REGISTERS[_CUT_SHORT[call]]
        length = getattr(regs, register)
        if length < 2:
            return False
        setattr(regs, register, length // 2)
    else:
        regs.orig_rax = 0xFFFFFFFFFFFFFFFF
        regs.rax = ctypes.c_ulonglong(-getattr(errno, fault)).value
    _ptrace(_SETREGS, pid, 0, ctypes.addressof(regs))
    return True


def _traced() -> set[int]:
    """Return the processes that this thread traces."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            if f"\nTracerPid:\t{threading.get_native_id()}\n" in path.read_text(errors="replace"):
                found.add(int(path.parent.name))
    return found


def _kill(pids: set[int]) -> None:
    for pid in list(pids):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
