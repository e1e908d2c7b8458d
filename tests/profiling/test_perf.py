import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chainlift.errors import MissingToolError, OperationError
from chainlift.profiling.perf import Address, PerfRecorder, _refused, parse_script, read_samples

# As perf 6.1 prints it: frames from the leaf, offsets into the file; the last one marks the end of the copied stack.
SCRIPT = """\
swapper     0     0.000000: PERF_RECORD_MMAP -1/0: [0xffffffff81000000(0x12090c8) @ 0xffffffff81000000]: x [kernel.kallsyms]_text
qemu-img 12177  2338.753834: PERF_RECORD_MMAP2 12177/12177: [0x557637f78000(0x126000) @ 0x62000 fe:00 2170915 11]: r-xp /usr/bin/qemu-img
qemu-img 12177  2341.686732: cpu-clock: 
               7e404 bdrv_is_inserted (/usr/bin/qemu-img)
               adfb3 bdrv_co_preadv_part (/usr/bin/qemu-img)
    ffffffffffffffff [unknown] ([unknown])

IO iothread 12178  2341.698927: cpu-clock: 
    ffffffff8120f2a4 copy_page_to_iter ([kernel.kallsyms])
        557637f98000 pread64 (/usr/bin/qemu-img)
"""  # noqa: E501, W291


def test_samples_are_read_root_first_with_the_end_marker_dropped():
    first, second = parse_script(SCRIPT)
    assert first.thread == "qemu-img"
    assert first.frames == (Address("/usr/bin/qemu-img", 0xADFB3), Address("/usr/bin/qemu-img", 0x7E404))
    assert second.thread == "IO iothread"
    assert second.time_s == 2341.698927
    assert second.frames[1] == Address("[kernel]", 0xFFFFFFFF8120F2A4, "copy_page_to_iter")


def test_an_address_in_the_process_becomes_an_offset_into_the_file():
    # Older perfs print addresses where newer ones print offsets.
    second = list(parse_script(SCRIPT))[1]
    assert second.frames[0] == Address("/usr/bin/qemu-img", 0x557637F98000 - 0x557637F78000 + 0x62000)


def test_nothing_recorded_is_no_sample():
    assert list(parse_script("")) == []


@pytest.mark.parametrize(
    ("said", "kind", "text"),
    [
        (
            "Error:\nAccess to performance monitoring and observability operations is limited.",
            MissingToolError,
            "sysctl",
        ),
        ("Couldn't create thread/CPU maps: No such process", OperationError, "ended while"),
        ("Error: unknown option `control'", MissingToolError, "too old"),
    ],
)
def test_why_perf_refused_is_one_line_with_what_to_do(said, kind, text):
    error = _refused(said)
    assert isinstance(error, kind)
    assert text in str(error)
    assert "\n" not in str(error)


def test_no_perf_says_which_package(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match="linux-perf"):
        PerfRecorder(os.getpid(), tmp_path / "perf.data")


needs_perf = pytest.mark.needs("perf")


def work(pid, seconds):
    """Wait until a process has had so much more of a processor, however busy the machine is."""

    def used():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) / os.sysconf("SC_CLK_TCK")

    before = used()
    while used() - before < seconds:
        time.sleep(0.02)


SPIN = "import time\nend = time.monotonic() + 60\nwhile time.monotonic() < end: sum(range(1000))"


@needs_perf
@pytest.mark.integration
def test_only_what_runs_between_begin_and_end_is_recorded(tmp_path):
    data = tmp_path / "perf.data"
    with subprocess.Popen([sys.executable, "-c", SPIN]) as process:
        try:
            with PerfRecorder(process.pid, data) as perf:
                work(process.pid, 0.3)
                begin = time.monotonic()
                perf.begin()
                work(process.pid, 0.7)
                perf.end()
                end = time.monotonic()
        finally:
            process.kill()
    samples = list(read_samples(data))
    assert len(samples) > 10
    # perf's clock is the kernel's scheduler clock, which runs beside the monotonic one: compare the spans.
    assert samples[-1].time_s - samples[0].time_s <= end - begin
    assert all(sample.frames for sample in samples)


@needs_perf
@pytest.mark.integration
def test_a_process_that_is_gone_is_an_error_of_one_line(tmp_path):
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(OperationError, match="ended while perf was to profile it"):
        PerfRecorder(process.pid, tmp_path / "perf.data")
