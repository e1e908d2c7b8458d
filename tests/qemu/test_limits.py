import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainlift.qcow2.writer import write_image
from chainlift.qemu.binary import Qemu
from chainlift.qemu.find import find_qemu
from chainlift.qemu.limits import Attempt, Limit, attempt_length, bisect, describe_attempt, describe_limit

SIZE = 64 << 20


@given(st.data(), st.integers(1, 2000), st.booleans())
def test_bisection_finds_the_longest_that_works_with_few_attempts(data, most, longest_first):
    threshold = data.draw(st.integers(0, most))
    asked = []

    def attempt(length):
        asked.append(length)
        return Attempt(length, open_s=1.0, signal=None if length <= threshold else 11)

    limit = bisect(attempt, lambda found: found.reads, most, longest_first=longest_first)
    assert (limit.longest.length if limit.longest else 0) == threshold
    assert (limit.shortest_failure.length if limit.shortest_failure else most + 1) == threshold + 1
    assert len(asked) == len(set(asked)) <= 12


@given(st.data(), st.integers(1, 2000), st.integers(1, 50))
def test_what_is_known_is_not_tried_again_and_the_limit_is_found_to_so_many_layers(data, most, within):
    threshold = data.draw(st.integers(0, most))
    before = data.draw(st.lists(st.integers(1, most), unique=True))
    asked = []

    def attempt(length):
        asked.append(length)
        return Attempt(length, open_s=1.0, signal=None if length <= threshold else 11)

    known = [attempt(length) for length in before]
    limit = bisect(attempt, lambda found: found.reads, most, known=known, within=within)
    longest = limit.longest.length if limit.longest else 0
    assert longest <= threshold <= longest + within - 1
    assert (limit.shortest_failure is None) == (longest == most)
    assert len(asked) == len(set(asked))


def test_a_longest_chain_that_takes_too_long_is_not_bisected():
    asked = []

    def attempt(length):
        asked.append(length)
        return Attempt(length, signal=signal.SIGALRM)

    limit = bisect(attempt, lambda found: found.opens, 2000, longest_first=True)
    assert (asked, limit.longest, limit.shortest_failure.length) == ([2000], None, 2000)


def test_a_limit_says_what_stopped_where():
    crashed = Limit(Attempt(865, 4.5, 873), Attempt(866, 4.5, 874, signal.SIGSEGV), "bdrv_co_is_inserted x125")
    assert describe_limit(crashed, "read") == (
        "QEMU ended by signal 11 (SIGSEGV) at 866 layers in bdrv_co_is_inserted x125"
    )
    assert describe_limit(Limit(Attempt(2000, 9.0, 2008)), "open") == "open works at every length that was tried"
    slow = Limit(Attempt(1, 1.0, 9), Attempt(2, 1.0, 10, signal.SIGALRM))
    assert describe_limit(slow, "read") == "QEMU took too long at 2 layers"


def test_an_attempt_is_told_in_a_line():
    assert describe_attempt(Attempt(865, 4.54, 873)) == "865 layers: open after 4.5 s, every read answered"
    crashed = Attempt(1866, 4.5, 874, signal.SIGSEGV)
    assert describe_attempt(crashed) == "1,866 layers: open after 4.5 s, ended by signal 11 (SIGSEGV)"
    assert describe_attempt(Attempt(2000, signal=signal.SIGALRM)) == "2,000 layers: not opened, took too long"


@pytest.mark.integration
def test_an_attempt_counts_file_descriptors_and_reads(tmp_path):
    write_image(tmp_path / "0.qcow2", virtual_size=SIZE, clusters=range(16))
    for number in range(1, 21):
        backing = {"backing_file": f"{number - 1}.qcow2", "backing_format": "qcow2"}
        write_image(tmp_path / f"{number}.qcow2", virtual_size=SIZE, **backing)
    attempt = attempt_length(find_qemu("host"), tmp_path / "20.qcow2", 20, SIZE)
    assert attempt.reads
    assert attempt.open_s > 0
    assert 21 <= attempt.file_descriptors < 60


@pytest.mark.integration
def test_a_crash_while_reading_and_one_while_opening_are_told_apart(tmp_path):
    def qemu(script):
        program = tmp_path / "qemu-img"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return Qemu("fake", program, program, program, program, (9, 0, 0), "9.0.0", "path")

    image = tmp_path / "x.qcow2"
    reading = attempt_length(qemu("echo Sending; sleep 0.2; kill -SEGV $$"), image, 5, SIZE)
    assert (reading.opens, reading.reads, reading.signal) == (True, False, signal.SIGSEGV)
    opening = attempt_length(qemu("kill -ABRT $$"), image, 5, SIZE)
    assert (opening.opens, opening.reads, opening.signal) == (False, False, signal.SIGABRT)
