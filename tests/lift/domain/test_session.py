"""The session of docs/libvirt.md, word for word."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.domain import DISK, XML
from tests.support.libvirt import virsh
from tests.support.stock import create, read, write

pytestmark = [pytest.mark.integration, pytest.mark.needs("libvirt")]
PAGE = Path(__file__).parents[3] / "docs/libvirt.md"
#: Where the page's images lie.
IMAGES = "/var/lib/libvirt/images"
#: What is another one in each run.
FIGURE = re.compile(r"\d[\d.]* (?:B|KiB|MiB|s|ms)\b|-{9,}")


#: What later releases say, and the page's words for it, which are 9.0's.
SAID_LATER = {
    "error: operation failed: snapshot VM disk source and parent disk source are not the same":
        "error: invalid argument: could not find base disk source in disk source chain",
}  # fmt: skip


def commands():
    """Each command of the page, and what it says there."""
    for block in re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL):
        for part in re.split(r"^# ", block, flags=re.MULTILINE)[1:]:
            command, *said = part.splitlines()
            yield command, said


def pattern(line, images):
    text = line.strip().replace(IMAGES, str(images))
    return ".*" if text == "..." else FIGURE.sub("FIGURE", text)


@pytest.fixture
def images(place):
    images = place / "images/page"
    images.mkdir()
    disk = create(images / "vm7.qcow2", size="8M")
    write(disk, 1, 0, "384k")
    owner = place.stat()
    (images / "vm7.xml").write_text(
        XML.format(name="vm7", disks=DISK.format(image=disk, target="vda", store="", more="", cache="none"))
    )
    subprocess.run(["chown", "-R", f"{owner.st_uid}:{owner.st_gid}", images], check=True)
    virsh("define", images / "vm7.xml")
    try:
        for number, day in enumerate(("monday", "tuesday", "wednesday"), 2):
            virsh("start", "vm7")
            virsh("snapshot-create-as", "vm7", day, "--disk-only")
            virsh("destroy", "vm7")
            write(images / f"vm7.{day}", number, number << 18, "384k")
        virsh("start", "vm7")
        yield images
    finally:
        subprocess.run(["virsh", "destroy", "vm7"], capture_output=True)
        subprocess.run(["virsh", "undefine", "vm7", "--snapshots-metadata"], capture_output=True)


def test_the_page_can_be_followed_word_for_word(images, place):
    before = read(images / "vm7.wednesday")
    count = 0
    for command, said in commands():
        words = command.replace(IMAGES, str(images)).split()
        if words[0] == "chainlift":
            words = [sys.executable, "-m", *words]
        done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "COLUMNS": "300"})
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        found = [FIGURE.sub("FIGURE", SAID_LATER.get(line, line)) for line in lines]
        wanted = [pattern(line, images) for line in said]
        if ".*" in wanted:
            wanted = wanted[: wanted.index(".*")]
            found = found[: len(wanted)]
        assert found == wanted, command
        count += 1
    assert count > 10
    assert read(Path(virsh("domblklist", "vm7").split()[-1])) == before
    assert "tainted" not in (place / "cache/libvirt/qemu/log/vm7.log").read_text()
