"""In which order an old chain is closed, on graphs of three releases (tests/support/recorded_qmp.py).

disk0 stands on a squash; the hold keeps layer2, layer1 and the base open, and somebody else has a node on the base.
"""

import copy
from pathlib import Path

import pytest
from tests.support.recorded_qmp import HOLD, RELEASES, RecordedQmp, recorded

from chainlift.errors import QemuError
from chainlift.lift.live.closing import closing
from chainlift.lift.live.graph import query_edges
from chainlift.lift.live.steps import ActiveNode, Steps
from chainlift.lift.record.pointer import named_in

NULL = HOLD.replace("hold", "null")
ACTIVE = ActiveNode(
    "disk0", "limited", Path("/images/a3.qcow2"), {}, False, False, None, HOLD.removesuffix("-hold"), Path("/")
)


def close(monitor, *, bit_by_bit=True):
    """Close the chain under the hold; return what QEMU was told, and how many steps that was."""
    steps = sum(
        1 for _ in closing(Steps(monitor, ACTIVE, read_pointer=named_in, pause_s=0), "layer2", bit_by_bit=bit_by_bit)
    )
    told = []
    for command, arguments in monitor.changes:
        if command == "blockdev-reopen":
            (options,) = arguments["options"]
            assert (options["driver"], options["node-name"], options["read-only"]) == ("raw", HOLD, True)
            told.append(f"hold {options['file']}")
        else:
            told.append(f"delete {arguments['node-name']}")
    return told, steps


def held(release, *, without=(), refuses=()):
    """The recorded graph; nodes that went by themselves meanwhile are not in a second look at it."""
    (first,) = recorded(release, "held")
    second = copy.deepcopy(first)
    second["return"]["nodes"] = [node for node in first["return"]["nodes"] if node["name"] not in without]
    left = {node["id"] for node in second["return"]["nodes"]}
    second["return"]["edges"] = [e for e in first["return"]["edges"] if {e["parent"], e["child"]} <= left]
    return RecordedQmp([first, second], accepts=("blockdev-reopen", "blockdev-del"), refuses=refuses)


def base_of(release):
    return query_edges(RecordedQmp(recorded(release, "held"))).backing_chain("layer2")[-1]


@pytest.mark.parametrize("release", RELEASES)
def test_layers_go_one_after_the_other_down_to_what_somebody_else_needs(release):
    assert close(held(release)) == (
        [
            "hold layer1", "delete layer2", "delete layer2-file",
            f"hold {base_of(release)}", "delete layer1", "delete layer1-file",
            f"hold {NULL}", f"delete {HOLD}",
        ],
        2,
    )  # fmt: skip


@pytest.mark.parametrize("release", RELEASES)
def test_where_a_reopen_must_free_nothing_all_goes_with_the_hold(release):
    assert close(held(release), bit_by_bit=False) == (
        [
            f"delete {HOLD}",
            "delete layer2", "delete layer2-file", "delete layer1", "delete layer1-file",
        ],
        0,
    )  # fmt: skip


def test_a_node_that_went_with_its_parent_is_no_error_and_one_that_stays_is():
    told, _ = close(held("7.2", without=["layer2-file"], refuses=["layer2-file"]))
    assert "delete layer2" in told
    assert "delete layer2-file" not in told
    assert told[-1] == f"delete {HOLD}"
    with pytest.raises(QemuError, match="layer2-file"):
        close(held("7.2", refuses=["layer2-file"]))
