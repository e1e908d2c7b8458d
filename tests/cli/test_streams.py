"""What becomes of a verb whose standard streams are closed, full or gone, and of one that is interrupted."""

import os
import signal
import subprocess
import sys

import pytest

from chainlift.qcow2.writer import write_image

MIB = 1 << 20


@pytest.fixture
def image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "base", virtual_size=MIB, clusters=[0], data=b"b" * 65536)
    write_image(tmp_path / "mid", virtual_size=MIB, clusters=[1], data=b"m" * 65536, backing_file="base",
                backing_format="qcow2")  # fmt: skip
    write_image(tmp_path / "top", virtual_size=MIB, backing_file="mid", backing_format="qcow2")
    return tmp_path / "top"


def shell(line, **environment):
    """Run a line of bash in which `chainlift` is the command."""
    words = f"chainlift() {{ '{sys.executable}' -m chainlift \"$@\"; }}; {line}"
    return subprocess.run(
        ["bash", "-c", words], capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize(
    "words", ["inspect top", "inspect --json top", "map top", "map --json top", "plan top", "--help"]
)
@pytest.mark.parametrize(("where", "said"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")])
def test_what_cannot_be_printed_is_no_success(image, words, where, said, buffered):
    done = shell(f"chainlift {words} {where}", PYTHONUNBUFFERED=buffered)
    assert (done.returncode, done.stderr) == (3, f"chainlift: standard output: {said}\n")


@pytest.mark.integration
@pytest.mark.parametrize("verb", ["index", "squash", "flatten"])
def test_a_verb_that_changes_something_says_that_it_may_be_done(image, verb):
    done = shell(f"chainlift {verb} top {'out' if verb == 'flatten' else ''} >/dev/full")
    assert done.returncode == 4
    assert done.stderr.startswith("chainlift: standard output: No space left on device; what was asked for may be done")
    assert done.stderr.count("\n") == 1
    assert shell(f"chainlift {verb} --help >/dev/full").returncode == 3


@pytest.mark.parametrize("words", ["inspect top", "map top", "inspect --all top"])
def test_a_reader_that_goes_away_is_no_error(image, words):
    done = shell(f"chainlift {words} | true; echo ${{PIPESTATUS[0]}}")
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.integration
@pytest.mark.parametrize(
    ("closed", "status"), [("<&-", 0), (">&-", 4), ("2>&-", 0), ("<&- >&- 2>&-", 4), ("2>/dev/full", 0)]
)
def test_nothing_is_printed_into_a_file_that_got_the_number_of_a_closed_stream(image, closed, status):
    before = {path.name: path.read_bytes() for path in image.parent.iterdir()}
    done = shell(f"chainlift flatten top out {closed}")
    assert done.returncode == status, done
    assert {name: image.with_name(name).read_bytes() for name in before} == before
    assert subprocess.run(["qemu-img", "compare", "-q", "top", "out"]).returncode == 0
    assert shell(f"chainlift inspect gone {closed}").returncode == 2


@pytest.mark.integration
def test_a_name_that_is_no_text_is_printed_somehow(image):
    out = os.fsencode(image.parent) + b"/\xff\x1b[2J"
    for words in (["flatten", "top", out], ["inspect", out], ["map", out], ["inspect", b"\xfe"]):
        done = subprocess.run([sys.executable, "-m", "chainlift", *words], capture_output=True)
        assert done.returncode == (2 if words[-1] == b"\xfe" else 0), done
        assert b"Traceback" not in done.stderr
        assert b"\x1b" not in done.stdout + done.stderr or words[0] == "map"


_INTERRUPTED = """
import os, signal, sys
from chainlift.__main__ import main
signal.signal(signal.SIGINT, signal.default_int_handler)
left = int(sys.argv.pop(1))
def hook(event, arguments):
    global left
    if event == "import":
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(hook)
main()
"""


@pytest.mark.interrupts
@pytest.mark.parametrize("number", [1, 5, 20, 60, 100, 150, 200, 250, 300, 400, 500, 600])
def test_an_interrupt_while_modules_load_is_one_line(image, number):
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, str(number), "inspect", str(image)], capture_output=True, text=True
    )
    if done.returncode == 0:  # there are not so many
        assert number > 150
        return
    assert (done.returncode, done.stderr) == (130, "chainlift: interrupted\n")


def test_an_interrupt_that_is_ignored_stays_so(image):
    done = shell("trap '' INT; chainlift inspect top & sleep 0.05; kill -INT $!; wait $!; echo $?")
    assert done.stdout.endswith("0\n")
    assert done.stderr == ""


@pytest.mark.interrupts
def test_an_interrupt_while_it_watches_is_one_line(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-m", "chainlift", "watch", "--dir", tmp_path, "--status", tmp_path / "status"],
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        while not (tmp_path / "status").exists():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.wait(60)
        assert process.returncode == 130
        said = process.stderr.read().splitlines()
        assert said[1:] == ["chainlift: watch ends: SIGINT", "chainlift: interrupted"]
        assert said[0].startswith("chainlift: watch begins: ")
