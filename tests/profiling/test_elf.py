import subprocess
import sys
from pathlib import Path

import pytest

from chainlift.errors import InputError
from chainlift.profiling.elf import frame_ranges, functions, machine_of, read_elf

PROGRAM = Path(sys.executable).resolve()


def test_functions_lie_where_eh_frame_says_that_functions_begin():
    elf = read_elf(PROGRAM)
    named = functions(elf, ".dynsym")
    ranges = {function.address: function.size for function in frame_ranges(elf)}
    assert len(named) > 500
    agreeing = sum(ranges.get(function.address) == function.size for function in named)
    assert agreeing > 0.95 * len(named)


def test_functions_are_in_order_and_have_names_and_sizes():
    named = functions(read_elf(PROGRAM), ".dynsym")
    assert [function.address for function in named] == sorted({function.address for function in named})
    assert all(function.size > 0 and function.name for function in named)


def test_the_build_id_is_the_one_that_file_prints():
    said = subprocess.run(["readelf", "-n", PROGRAM], capture_output=True, text=True).stdout
    build_id = read_elf(PROGRAM).build_id
    assert build_id
    assert f"Build ID: {build_id}" in said


def test_a_file_offset_maps_to_its_address():
    elf = read_elf(PROGRAM)
    text = elf.section(".text")
    assert elf.address_of(text.offset + 5) == text.address + 5
    assert elf.address_of(len(elf.data) + 10**9) is None
    assert elf.offset_of(text.address + 5) == text.offset + 5
    assert elf.offset_of(1 << 60) is None


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF\x02\x01", b"\x7fELF\x01\x01" + bytes(100)])
def test_what_is_no_elf_file_is_bad_input(tmp_path, content):
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a 64-bit little-endian ELF file"):
        read_elf(path)


@pytest.mark.parametrize("cut", [64, 100, 1000, 100_000])
def test_a_cut_off_file_is_bad_input(tmp_path, cut):
    path = tmp_path / "x"
    path.write_bytes(PROGRAM.read_bytes()[:cut])
    with pytest.raises(InputError, match="damaged"):
        read_elf(path)


def test_the_machine_is_named_as_uname_does(tmp_path):
    assert machine_of(PROGRAM) == subprocess.run(["uname", "-m"], capture_output=True, text=True).stdout.strip()
    script = tmp_path / "x"
    script.write_text("#!/bin/sh\n")
    assert machine_of(script) is None
    assert machine_of(tmp_path / "missing") is None
