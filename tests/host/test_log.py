"""Audit events as lines; in a process of its own, because a hook stays."""

import subprocess
import sys

_HEAD = """
import logging, os, pathlib, shutil, subprocess, sys, tempfile
from chainlift.host.log import log_changes
logging.basicConfig(stream=sys.stdout, format="%(name)s: %(message)s", level=logging.DEBUG)
log_changes()
log_changes()
"""


def said(body, place):
    done = subprocess.run([sys.executable, "-c", _HEAD + body], capture_output=True, text=True, cwd=place)
    assert (done.returncode, done.stderr) == (0, ""), done
    # Where the coverage of these tests is measured, its file is written, too.
    return [line for line in done.stdout.splitlines() if "/.coverage." not in line]


def test_what_changes_a_file_is_said_once(tmp_path):
    body = """
pathlib.Path("a").write_text("x")
pathlib.Path("a").read_text()
os.rename("a", "b")
os.link("b", "c")
os.symlink("b", "d")
os.chmod("b", 0o640)
with open("b", "r+b") as file:
    os.truncate(file.fileno(), 0)
os.remove("c")
pathlib.Path("never").unlink(missing_ok=True)
os.mkdir("e")
os.rmdir("e")
"""
    assert said(body, tmp_path) == [
        f"chainlift.files: {line}"
        for line in (
            "open a for writing",
            "rename a to b",
            "link b to c",
            "symbolic link b to d",
            "chmod 640 b",
            "open b for writing",
            f"truncate {tmp_path}/b to 0 bytes",
            "remove c",
            "make directory e (777)",
            "remove directory e",
        )
    ]


def test_a_name_in_an_open_directory_is_said_whole(tmp_path):
    body = "d = os.open('.', os.O_DIRECTORY)\nos.close(os.open('x', os.O_CREAT | os.O_WRONLY, dir_fd=d))\n"
    body += "os.rename('x', 'y', src_dir_fd=d, dst_dir_fd=d)\nos.unlink('y', dir_fd=d)"
    assert said(body, tmp_path)[-2:] == [
        f"chainlift.files: rename {tmp_path}/x to {tmp_path}/y",
        f"chainlift.files: remove {tmp_path}/y",
    ]


def test_nameless_files_and_devices_are_nobodys(tmp_path):
    body = f"tempfile.TemporaryFile(dir={str(tmp_path)!r}).close()\nopen('/dev/null', 'w').close()"
    assert said(body, tmp_path) == []


def test_programs_are_said(tmp_path):
    assert said("subprocess.run(['true', 'a b'])", tmp_path) == ["chainlift.programs: run true 'a b'"]
