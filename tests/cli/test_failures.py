"""Whatever the operating system says, or hostile input does: one line, and never a status that says more than is so."""

import os
import subprocess
import sys

import pytest
from tests.support import faults
from tests.support.chains import make_chain

from chainlift.cli.main import main
from chainlift.qcow2.writer import write_image

MIB = 1 << 20


def chainlift(*words, **how):
    done = subprocess.run(
        [sys.executable, "-m", "chainlift", *map(str, words)], capture_output=True, text=True, timeout=60, **how
    )
    assert done.stderr.count("\n") == (done.returncode not in (0, 1)), done
    return done


VERBS = {
    "inspect": ["inspect"], "inspect json": ["inspect", "--json"], "map": ["map"], "plan": ["plan"],
    "flatten": ["flatten"], "flatten raw": ["flatten", "-O", "raw"], "overwrite": ["flatten", "--overwrite"],
}  # fmt: skip


@pytest.mark.integration
@pytest.mark.needs("x86-64")
@pytest.mark.parametrize("fault", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("verb", VERBS)
def test_every_call_may_fail(tmp_path, contents, request, verb, fault):
    image = make_chain(tmp_path / "c", 3, length=3)
    out = tmp_path / "c/out"
    words = [*VERBS[verb], str(image), *([str(out)] if "flatten" in VERBS[verb] else [])]
    if verb == "overwrite":
        out.write_text("something of value")
    before = contents(tmp_path)

    def run():
        main(words)

    count = len(faults.run(run, tmp_path, reads=True).calls)
    assert count > 5
    out.unlink(missing_ok=True)
    some = sorted({*range(0, count, 9), *range(count - 5, count)})
    for point in range(count) if request.config.getoption("--long") else some:
        if verb == "overwrite":
            out.write_text("something of value")
        trace = faults.run(run, tmp_path, point=point, fault=fault, reads=True)
        where = f"{fault} at call {point}, {trace.calls[point] if point < len(trace.calls) else 'not reached'}"
        assert "Traceback" not in trace.stderr, (where, trace.stderr)
        assert trace.status in ((0, 2, 3, 4) if verb == "overwrite" else (0, 2, 3)), (where, trace.stderr)
        assert trace.stderr.count("\n") == (trace.status != 0), (where, trace.stderr)
        after = contents(tmp_path)
        if trace.status == 4:
            assert "is the new image" in trace.stderr, (where, trace.stderr)
        elif trace.status:
            assert after == before, (where, trace.stderr)
        out.unlink(missing_ok=True)


def test_memory_that_is_short_is_one_line(tmp_path):
    write_image(
        tmp_path / "image", virtual_size=1 << 40, cluster_size=65536, clusters=range(0, 1 << 24, 4096), data=None
    )
    code = """
import resource, sys
import numpy, chainlift.cli.inspect, chainlift.chain.broken, chainlift.cli.inspect_text
from chainlift.cli.main import main
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 20), used + (4 << 20)))
main(["inspect", sys.argv[1]])
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "image"], capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr in ("chainlift: not enough memory\n", "chainlift: Cannot allocate memory\n")


@pytest.mark.parametrize("depth", [100, 1000, 20_000])
@pytest.mark.parametrize("kind", ["dict", "list", "dots", "backing"])
def test_a_name_that_is_nested_deeply_is_one_line(depth, kind):
    name = {
        "dict": '{"file":' * depth + "0" + "}" * depth,
        "list": "[" * depth + "]" * depth,
        "dots": '{"' + "file." * depth + 'filename":"x"}',
        "backing": '{"driver":"qcow2","file.filename":"x","backing":' * depth + "null" + "}" * depth,
    }[kind]
    for verb in ("inspect", "map"):
        done = chainlift(verb, "json:" + name[:120_000])
        assert done.returncode == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["watch", "--dir", "{}", "--status", "{}/gone/status"], "/gone' is no directory"),
        (["watch", "--dir", "{}", "--metrics", "{}/file/metrics"], "/file' is no directory"),
        (["watch", "--dir", "{}/gone"], "does not exist"),
        (["watch", "--dir", "{}/file"], "is a file"),
        (["watch"], "Missing option '--qmp', '--dir' or '--libvirt'"),
        (["watch", "--dir", "{}", "--copy-budget", "much"], "is not a size"),
        (["watch", "--dir", "{}", "--copy-budget", "9" * 300 + ".5E"], "more than 2^63"),
        (["watch", "--dir", "{}", "--copy-budget", "9" * 5000], "more than 2^63"),
        (["watch", "--dir", "{}", "--copy-budget", "8E"], "more than 2^63"),
        (["flatten", "{}/no-image", "{}/gone/out"], "/gone' is no directory"),
        (["flatten", "{}/no-image", ""], "is no directory"),
        (["flatten", "-O", "raw", "--compress", "zlib", "{}/no-image", "{}/out"], "goes with -O qcow2"),
        (["profile", "--out", "{}/file/out", "{}/no-image"], "/file' is no directory that can be written to"),
        (["study", "run", "--out", "{}/file/out", "quick"], "/file' is no directory that can be written to"),
        (["study", "run", "--chains", "{}/file", "quick"], "is a file"),
        (["map", "--as-qemu", "new", "{}/no-image"], "is no version"),
    ],
)
def test_bad_use_is_found_before_anything_is_looked_at(tmp_path, words, said):
    (tmp_path / "file").write_text("")
    done = chainlift(*(word.format(tmp_path) for word in words), cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "no-image" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_profile_of_a_fifo_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    done = chainlift("profile", "--out", tmp_path / "out", tmp_path / "fifo")
    assert (done.returncode, done.stderr) == (
        2, f"chainlift: {tmp_path}/fifo: is a FIFO, not a regular file or a block device\n"
    )  # fmt: skip


def test_a_watch_goes_on_when_files_cannot_be_written(tmp_path):
    """Its directories vanish while it watches; what cannot be written from the start ends it."""
    (tmp_path / "status").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "chainlift", "watch", "--dir", tmp_path, "--status", tmp_path / "status", "--once"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == f"chainlift: {tmp_path}/status: cannot be written: Is a directory\n"
    assert [path.name for path in tmp_path.iterdir()] == ["status"]
    place = tmp_path / "status/sub"
    place.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "chainlift", "watch", "--dir", place, "--metrics", place / "m", "--interval", "1"],
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        while not (place / "m").exists():
            assert process.poll() is None
        (place / "m").unlink()
        place.rmdir()
        said = [process.stderr.readline() for _ in range(3)]
        place.mkdir()
        while not (place / "m").exists():
            assert process.poll() is None
        said += [process.stderr.readline() for _ in range(2)]
        process.kill()
    # Each once, though every round meets it.
    assert said[0].startswith("chainlift: watch begins: ")
    gone = f"chainlift: warning: {place}: No such file or directory\n"
    assert sorted(said[1:3]) == sorted([gone, gone.replace(f"{place}:", f"{place}/m:")])
    assert sorted(said[3:]) == [f"chainlift: {place}/m: is well again\n", f"chainlift: {place}: is well again\n"]


@pytest.fixture
def contents():
    def read(directory):
        return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}

    return read
