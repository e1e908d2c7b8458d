"""Signals in processes of their own: where each comes, and that none is lost."""

import signal
import subprocess
import sys

import pytest

_HEAD = """
import os, signal, sys, time, weakref
from chainlift.host import interrupts
interrupts.install()
def come(number=signal.SIGINT):
    os.kill(os.getpid(), number)
def wait():
    for _ in range(3000):
        time.sleep(0.01)
    print("nothing came")
"""
_TAIL = """
except interrupts.Interrupted as error:
    print("interrupted", error.number)
finally:
    interrupts.end()
"""


def run(body: str, tail: str = _TAIL) -> str:
    lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
    done = subprocess.run([sys.executable, "-c", f"{_HEAD}try:\n{lines}{tail}"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_comes_at_once(number):
    assert run(f"come({number})\nprint('not reached')") == f"interrupted {number:d}\n"


_LOST = {
    "finalizer": """
class A:
    def __del__(self): come()
a = A()
del a
wait()
""",
    "callback": """
class A: pass
a = A()
reference = weakref.ref(a, lambda _: come())
del a
wait()
""",
    "weak set": """
class A: pass
a = A()
kept = weakref.WeakSet([a])
sys.setprofile(lambda frame, what, _: come() if what == "call" and frame.f_code.co_name == "_remove" else None)
del a
sys.setprofile(None)
wait()
""",
}


@pytest.mark.parametrize("where", _LOST)
def test_it_is_not_lost_where_python_would_lose_it(where):
    assert run(_LOST[where]) == "interrupted 2\n"


def test_what_is_closed_is_closed_to_the_end():
    body = "class A:\n  def __enter__(self): pass\n  def __exit__(self, *_): come(); time.sleep(0.1); print('closed')"
    assert run(f"{body}\nwith A(): pass\nwait()") == "closed\ninterrupted 2\n"


def test_what_is_undone_is_undone_to_the_end_whoever_presses_again():
    body = "try:\n  come()\n  wait()\nexcept KeyboardInterrupt:\n  come(15); time.sleep(0.1); print('undone')\n  raise"
    assert run(body) == "undone\ninterrupted 2\n"
    body = "try: raise ValueError\nexcept ValueError: come(); time.sleep(0.1); print('undone')\nwait()"
    assert run(body) == "undone\ninterrupted 2\n"


def test_a_block_that_puts_it_off_says_where_it_comes():
    body = "with interrupts.put_off():\n  come(); time.sleep(0.1); print('one')\n"
    assert run(f"{body}  interrupts.between_steps(); print('two')") == "one\ninterrupted 2\n"
    assert run(f"{body}wait()") == "one\ninterrupted 2\n"


def test_too_late_is_too_late_until_something_else_begins():
    body = "interrupts.too_late()\ncome()\ntime.sleep(0.1)\ninterrupts.between_steps()\nprint('done')"
    assert run(body) == "done\n"
    assert run(f"{body}\ninterrupts.resume()\nwait()") == "done\ninterrupted 2\n"


def test_modules_load_to_the_end(tmp_path):
    (tmp_path / "slow.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\ndone = True\n")
    body = f"sys.path.insert(0, {str(tmp_path)!r})\nimport slow\nprint(slow.done)\nwait()"
    assert run(body) == "True\ninterrupted 2\n"


def test_threads_do_not_put_it_off():
    body = (
        "import threading\ndef run():\n  with interrupts.put_off(): time.sleep(30)\n"
        "threading.Thread(target=run, daemon=True).start()\ntime.sleep(0.1)\ncome()\nwait()"
    )
    assert run(body) == "interrupted 2\n"


def test_one_that_is_ignored_stays_so():
    code = (
        "import signal\nfrom chainlift.host import interrupts\ninterrupts.install()\nsignal.raise_signal(signal.SIGHUP)"
    )
    done = subprocess.run(["nohup", sys.executable, "-c", code + "\nprint('on')"], capture_output=True, text=True)
    assert done.stdout == "on\n"
