"""The metrics are Prometheus' text format (version 0.0.4), read by a parser written from its description."""

import re

import pytest

from chainlift.lift.watching.metrics import as_prometheus
from chainlift.lift.watching.status import Counts, DiskStatus, VmStatus, WatchStatus

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_ESCAPES = {"\\": "\\", "n": "\n", '"': '"'}


def parse(text):
    """Return the samples: (name, labels) -> value. Every line must be right, and stand where it may."""
    assert text.endswith("\n")
    assert "\r" not in text
    samples, kinds, helped, family, done = {}, {}, {}, None, set()
    for line in text.removesuffix("\n").split("\n"):
        if line.startswith("# "):
            _, word, name, rest = line.split(" ", 3)
            assert _NAME.fullmatch(name)
            if name != family:
                assert name not in done, f"the samples of {name} are not together"
                done.add(family)
                family = name
            if word == "HELP":
                assert name not in helped
                assert not re.search(r"\\[^\\n]", rest)
                helped[name] = rest
            else:
                assert word == "TYPE"
                assert name not in kinds
                assert rest in ("counter", "gauge", "histogram", "summary", "untyped")
                assert (name.endswith("_total")) == (rest == "counter")
                kinds[name] = rest
            continue
        name, labels, value = sample(line)
        assert name == family, "a sample stands under its TYPE"
        assert (name, labels) not in samples, "each only once"
        assert kinds[name] != "counter" or value >= 0
        samples[name, labels] = value
    assert kinds.keys() == helped.keys() == {name for name, _ in samples}
    return samples


def sample(line):
    name = _NAME.match(line).group()
    at, labels = len(name), []
    if line[at] == "{":
        at += 1
        while line[at] != "}":
            label = _LABEL.match(line, at).group()
            at += len(label)
            assert line[at : at + 2] == '="'
            at, text = at + 2, ""
            while line[at] != '"':
                if line[at] == "\\":
                    at += 1
                    text += _ESCAPES[line[at]]
                else:
                    text += line[at]
                at += 1
            labels.append((label, text))
            at += 1
            if line[at] == ",":
                at += 1
        at += 1
    assert line[at] == " "
    assert len(dict(labels)) == len(labels)
    return name, tuple(labels), float(line[at + 1 :])


@pytest.fixture
def status():
    odd = 'a "quoted"\\name\nof two lines, {x="y"} \udcff'
    found = WatchStatus(started_at_s=1700000000.25, rounds=3, rounds_before=10, last_round_s=0.125)
    found.vms = {
        "/run/vm7": VmStatus("/run/vm7", "guest 7", True, None, None, 1700000010.5, 0.02),
        "/run/hung": VmStatus("/run/hung", None, False, "is busy"),
        "/run/new": VmStatus("/run/new"),
    }
    found.disks = {
        ("/run/vm7", "vda"): DiskStatus(
            "/run/vm7", "guest 7", "vda", "node0", odd, 1, "now", counts=Counts(3, 1, 1 << 60, 2, 5, 7),
            paused="by command", last_index_s=0.5, last_longest_command_s=4e-05,
        ),
        ("/run/vm7", "vdb"): DiskStatus("/run/vm7", "guest 7", "vdb", "n", "/b", 40, "now", busy="a job", error="no"),
    }  # fmt: skip
    found.problems = {"/run/status": "Permission denied"}
    return found


def test_every_sample_is_what_is_known(status):
    samples = parse(as_prometheus(status, now_s=1700000015.0))
    vm = (("socket", "/run/vm7"), ("vm", "guest 7"))
    hung = (("socket", "/run/hung"), ("vm", "hung"))
    vda, vdb = (*vm, ("disk", "vda")), (*vm, ("disk", "vdb"))
    assert {name: value for (name, labels), value in samples.items() if labels == vm} == {
        "chainlift_up": 1, "chainlift_last_look_timestamp_seconds": 1700000010.5,
        "chainlift_last_look_age_seconds": 4.5, "chainlift_last_look_seconds": 0.02,
    }  # fmt: skip
    # Nothing is said of what is not known.
    assert {name: value for (name, labels), value in samples.items() if labels == hung} == {"chainlift_up": 0}
    assert not [labels for _, labels in samples if ("socket", "/run/new") in labels]
    assert {name: value for (name, labels), value in samples.items() if labels == vda} == {
        "chainlift_chain_length": 1, "chainlift_busy": 0, "chainlift_paused": 1, "chainlift_failed": 0,
        "chainlift_indexed_total": 3, "chainlift_failures_total": 1, "chainlift_copied_bytes_total": 1 << 60,
        "chainlift_pruned_total": 2, "chainlift_deleted_snapshots_total": 5, "chainlift_freed_bytes_total": 7,
        "chainlift_last_index_seconds": 0.5, "chainlift_last_longest_command_seconds": 4e-05,
    }  # fmt: skip
    assert samples["chainlift_busy", vdb] == samples["chainlift_failed", vdb] == 1
    ((_, info),) = [key for key in samples if key[0] == "chainlift_disk_info" and ("disk", "vda") in key[1]]
    assert dict(info)["image"] == 'a "quoted"\\name\nof two lines, {x="y"} \N{REPLACEMENT CHARACTER}'
    assert {name: value for (name, labels), value in samples.items() if not labels} == {
        "chainlift_silent_sockets": 1, "chainlift_file_problems": 1, "chainlift_rounds_total": 13,
        "chainlift_last_round_seconds": 0.125, "chainlift_start_timestamp_seconds": 1700000000.25,
        "chainlift_written_timestamp_seconds": 1700000015.0,
    }  # fmt: skip


def test_a_watch_that_has_seen_nothing_has_metrics_too():
    assert parse(as_prometheus(WatchStatus()))["chainlift_silent_sockets", ()] == 0
