import subprocess
from pathlib import Path, PurePosixPath

import pytest

from chainlift.errors import OperationError
from chainlift.guest.libraries import closure, read_needs


@pytest.mark.needs("glibc")
def test_the_closure_of_a_program_is_what_ldd_says():
    found = closure(Path("/"), [Path("/bin/bash")])
    said = subprocess.run(["ldd", "/bin/bash"], capture_output=True, text=True).stdout
    names = {line.split()[0] for line in said.splitlines() if "=>" in line}
    assert names <= {place.name for place in found}
    assert PurePosixPath("/lib64/ld-linux-x86-64.so.2") in found
    assert all(file.is_file() for file in found.values())


def test_a_library_that_is_not_there_is_named(tmp_path):
    with pytest.raises(OperationError, match=r"no library \S+ in the unpacked packages"):
        closure(tmp_path, [Path("/bin/bash")])


def test_a_file_that_is_no_program_is_refused(tmp_path):
    (tmp_path / "script").write_text("#!/bin/sh\n")
    with pytest.raises(OperationError, match="is no 64-bit ELF file"):
        read_needs(tmp_path / "script")
