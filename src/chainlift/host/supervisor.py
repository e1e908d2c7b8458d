"""Runs one program for chainlift, as a script: ``python -I -S supervisor.py REPORT LIFELINE REMOVE ARGV...``.

Between chainlift and every program that it starts stands this small process, for two reasons:

* **The program dies with chainlift**, also when chainlift is killed by SIGKILL. ``PR_SET_PDEATHSIG`` alone does not do:
  the kernel sends it when the *thread* that forked ends, and chainlift starts QEMU from worker threads. So chainlift
  holds the writing end of a pipe, the life line; when it closes, whoever held it, the program is killed from here.
  Should this process, which has one thread, be killed itself, ``PR_SET_PDEATHSIG`` (by ``setpriv``) does the rest.
* **Peak memory is the program's own.** ``ru_maxrss`` of a process includes the memory of whoever forked it, up to the
  ``execve`` (Linux, ``exec_mmap()`` in fs/exec.c): forked by a Python with numpy in it, ``qemu-img`` would never
  show less than some hundred megabytes. Forked from here the floor is below 8 MB.

Imports nothing that is not cheap (no pathlib, no json): this runs before every program. The file descriptors REPORT
and LIFELINE are given by number. To REPORT it writes two lines of JSON: the program's pid, then its exit status, times
and peak memory. REMOVE is a directory to delete when the program has ended (its sockets; empty for none).
"""

# ruff: noqa: PTH106, PTH108, PTH118, PTH208, SIM105

import _signal  # type: ignore[import-not-found]
import os
import resource
import select
import sys
import time


def main() -> None:
    """Start the program, wait for its end or the life line's, say what it took."""
    report, lifeline, remove, argv = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]
    os.set_inheritable(report, False)  # noqa: FBT003
    os.set_inheritable(lifeline, False)  # noqa: FBT003
    # A chain of 1,000 layers is 1,000 open files, and the usual soft limit is 1,024.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # setpriv asks for the signal; were this process dead by then, the program would have another parent: sh looks.
    wrapper = ["setpriv", "--pdeathsig", "KILL", "--", "sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"', str(os.getpid())]
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)  # Python ignores it, and a program would inherit that
            os.execvp(wrapper[0], wrapper + argv)
        finally:
            os._exit(127)
    # Whoever reads our standard output must see its end when the program ends, not when this process does.
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    child_fd = os.pidfd_open(child)
    _say(report, f'{{"pid": {child}}}\n')
    poll = select.poll()
    poll.register(child_fd, select.POLLIN)
    poll.register(lifeline, select.POLLIN)
    ready = {descriptor for descriptor, _ in poll.poll()}
    if child_fd not in ready:
        os.kill(child, _signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    wall = time.monotonic() - started
    if remove:
        for name in os.listdir(remove):
            os.unlink(os.path.join(remove, name))
        os.rmdir(remove)
    _say(
        report,
        f'{{"returncode": {os.waitstatus_to_exitcode(status)}, "wall_s": {wall!r}, "cpu_user_s": {usage.ru_utime!r}, '
        f'"cpu_sys_s": {usage.ru_stime!r}, "peak_rss_bytes": {usage.ru_maxrss * 1024}}}\n',
    )


def _say(report: int, line: str) -> None:
    try:
        os.write(report, line.encode())
    except OSError:  # chainlift is gone: nobody to tell
        pass


if __name__ == "__main__":
    main()
