"""Disks that a running QEMU has open: the command names its socket, and works."""

import shlex
import subprocess
import sys

import pytest
from tests.support.chains import plain_chain
from tests.support.running import Running

from chainlift.survey.crew import Crew
from chainlift.survey.find import find
from chainlift.survey.settings import Settings

pytestmark = pytest.mark.integration


def look(directory):
    found = find([str(directory)], with_libvirt=False)
    with Crew(1, Settings(), 60) as crew:
        ((_, record),) = crew.describe(found.chains)
    return record


@pytest.mark.parametrize("emulator", [False, True])
def test_the_command_of_a_running_disk(tmp_path, emulator):
    image = plain_chain(tmp_path, 9)
    qemu = Running(image, emulator=emulator)
    try:
        chain = look(tmp_path)
        assert chain.is_running
        assert str(qemu.pid) in chain.held_by
        assert chain.advice.command == f"chainlift index --qmp {qemu.qmp_path} {image}"
        program = f"{shlex.quote(sys.executable)} -m chainlift"
        command = chain.advice.command.replace("chainlift", program, 1)
        done = subprocess.run(command, shell=True, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert look(tmp_path).length == 1
    finally:
        qemu.kill()


def test_without_a_socket_there_is_no_command(tmp_path):
    image = plain_chain(tmp_path, 9)
    with image.open("r+b") as file, subprocess.Popen(["sleep", "60"], stdin=file) as holder:
        chain = look(tmp_path)
        holder.kill()
    assert chain.advice.command == ""
    assert f"sleep (process {holder.pid}) has it open" in chain.advice.why
