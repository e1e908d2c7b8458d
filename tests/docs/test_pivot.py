"""What docs/pivot.md says by hand, typed as it is written there."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.daemon import read_all, starting_daemons
from tests.support.owned_chain import everything, make_owned_chain
from tests.support.sessions import replaced

from chainlift.host.durable import sync_path
from chainlift.lift.live.graph import query_graph
from chainlift.lift.record.pointer import named_in

pytestmark = [pytest.mark.integration, pytest.mark.qemu(since=(6, 1))]

PAGE = (Path(__file__).parents[2] / "docs/pivot.md").read_text()


def blocks(heading):
    """Of the part under a heading: the steps' names, each with its commands."""
    (part,) = re.findall(rf"^## {heading}$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    block = re.compile(r"^([a-z ]+):\n\n```text\n(.*?)^```", re.MULTILINE | re.DOTALL)
    sections = [block.findall(one) for one in part.split("###")]
    assert all(sections)
    return sections


class Hands:
    """Somebody who types a page's commands at the monitor of a storage daemon, where other names are in use."""

    def __init__(self, chain, daemon):
        self.chain, self.daemon = chain, daemon
        names = ("base", "snap-1", "snap-2", "disk", "squash")
        files = dict(zip(names, [*chain.files, chain.directory / "squash.qcow2"], strict=True))
        # The layers of the page, top first: the lower, the earlier QEMU has opened it.
        layers = sorted(set(re.findall(r"#block\d+", PAGE)), key=lambda name: int(name[6:]), reverse=True)
        _, *nodes = query_graph(daemon.monitor).backing_chain("disk0")
        self.replace = {
            **{f"/srv/vm7/{name}.qcow2": str(path) for name, path in files.items()},
            **{f'"{name}"': f'"{node}"' for name, node in zip(layers, nodes, strict=True)},
            '"vda"': '"disk0"', '"vda-file"': '"disk0-file"',
        }  # fmt: skip

    def type(self, commands):
        commands = replaced(commands, self.replace)
        while commands:
            if commands.startswith("sync "):
                line, _, commands = commands.partition("\n")
                sync_path(Path(line.removeprefix("sync ")))
                continue
            command, end = json.JSONDecoder().raw_decode(commands)
            self.daemon.monitor.execute(command["execute"], command["arguments"])
            commands = commands[end:].lstrip()

    def look(self):
        """What is there: nodes, and names in headers. The disk reads what it always did."""
        with self.daemon.client() as client:
            assert read_all(client) == everything(self.chain)
        return self.daemon.nodes(), [named_in(path) for path in self.chain.files]


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The chain of the page, with an index and an image of its middle that it does not stand on."""
    chain = make_owned_chain(tmp_path_factory.mktemp("page") / "chain", 3, virtual_size=8 << 20, absolute_names=True)
    for verb in ("index", "restore"):
        subprocess.run([sys.executable, "-m", "chainlift", verb, chain.active], check=True, capture_output=True)
    squash = chain.directory / "squash.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", chain.files[1], squash], check=True)
    return chain


@pytest.fixture
def hands(tmp_path, chain, qemu):
    with starting_daemons(tmp_path) as start:
        yield Hands(chain, start(chain.active, qemu=qemu))
    for image, backing in itertools.pairwise(reversed(chain.files)):
        subprocess.run(["qemu-img", "rebase", "-u", "-F", "qcow2", "-b", backing, image], check=True)


@pytest.mark.parametrize("heading", ["The disk's own backing file, by an index", "A backing file further down"])
def test_each_step_is_undone_by_hand(hands, heading):
    steps, back, *_ = blocks(heading)
    assert sorted(name for name, _ in back) == sorted(f"{name} is undone" for name, _ in steps)
    seen = [hands.look()]
    for _, commands in steps:
        hands.type(commands)
        seen.append(hands.look())
    for (name, commands), before in zip(back, reversed(seen[:-1]), strict=True):
        hands.type(commands)
        now = hands.look()
        assert name in ("add is undone", "hold is undone") or now == before  # the page has them the other way round
    assert now == seen[0]


def test_the_whole_of_it_by_hand(hands):
    steps, _, end = blocks("The disk's own backing file, by an index")
    for _, commands in [*steps, *end]:
        hands.type(commands)
    nodes, headers = hands.look()
    assert headers[-1].startswith("json:")
    assert "index-1.vmdk" in headers[-1]
    assert {name for name in nodes if not name.startswith("#")} == {"disk0", "disk0-file", "chainlift-1a2b3c4d-1"}
