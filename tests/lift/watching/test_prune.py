"""A watch that prunes: what no rule keeps goes, what somebody needs is not tried again and again."""

import subprocess

import pytest
from tests.support.domain import Machine
from tests.support.libvirt import running_libvirtd
from tests.support.stock import read
from tests.support.thinned import hourly_chain, read_each
from tests.support.verbs import Verbs
from tests.support.watching import machine, rules

from chainlift.lift.prune.retention import Policy, Retention
from chainlift.lift.watching.metrics import as_prometheus
from chainlift.lift.watching.service import Settings, Watch
from chainlift.lift.watching.status import as_json
from chainlift.qemu.find import find_qemu

pytestmark = pytest.mark.integration


def once(settings):
    watch = Watch(settings)
    watch.run(once=True)
    return watch.status


def said(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if ": prune: " in line]


def test_snapshots_that_no_rule_keeps_go_and_a_second_round_does_nothing(tmp_path, capsys):
    layers = hourly_chain(tmp_path / "vm")
    active, kept = layers[-1], [layers[0], *layers[-4:]]
    contents = read_each(kept)
    settings = Settings(
        rules(tmp_path / "state", policy=Policy(Retention(last=3))), sockets=(tmp_path / "run/qmp",)
    )  # fmt: skip
    with machine(tmp_path / "run", active, name="vm7"):
        status = once(settings)
        assert status.troubles() == []
        assert {path for path in layers if path.exists()} == set(kept)
        (line,) = said(capsys)
        assert "vm7 disk0: prune: pruned, length 8, 4 snapshots deleted, " in line
        (disk,) = as_json(status)["disks"]
        assert (disk["length"], disk["state"], disk["pruned"], disk["deleted"]) == (4, "short", 1, 4)
        assert disk["freed_bytes"] > 0
        metrics = as_prometheus(status)
        labels = f'{{socket="{tmp_path}/run/qmp",vm="vm7",disk="disk0"}}'
        assert f"chainlift_pruned_total{labels} 1\n" in metrics
        assert f"chainlift_deleted_snapshots_total{labels} 4\n" in metrics
        # Counters go on in the next watch, which finds nothing to do.
        (disk,) = as_json(once(settings))["disks"]
        assert (disk["length"], disk["pruned"]) == (4, 1)
        assert said(capsys) == []
    assert read_each(kept) == contents


def test_only_what_is_meant_goes_and_what_is_needed_is_tried_once(tmp_path, capsys):
    layers = hourly_chain(tmp_path / "vm")
    clone = tmp_path / "vm/clone.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", layers[2], clone], check=True
    )  # fmt: skip
    before = read(clone)
    policy = Policy(Retention(last=1), only="layer[12356].qcow2")
    settings = Settings(rules(tmp_path / "state", policy=policy), sockets=(tmp_path / "run/qmp",))
    with machine(tmp_path / "run", layers[-1], name="vm7"):
        watch = Watch(settings)
        watch.run(once=True)
        (line,) = said(capsys)
        assert "3 snapshots deleted" in line
        assert f"kept {layers[2]}: " in line
        assert [number for number, path in enumerate(layers) if path.exists()] == [0, 2, 4, 6, 7, 8]
        # It is known by now that a clone needs the second.
        (disk,) = watch.status.disks.values()
        assert not disk.is_long
        assert watch._kept_back(tmp_path / "run/qmp", type("Seen", (), {"name": "disk0"})) == {str(layers[2])}
    assert read(clone) == before


@pytest.mark.needs("libvirt")
def test_a_domain_is_pruned_by_libvirt_itself(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    with running_libvirtd() as place, Machine(place) as vm:
        state = rules(
            tmp_path / "state", policy=Policy(Retention(last=1)), qemu=find_qemu(need=["img", "storage-daemon"])
        )
        before = vm.content()
        status = once(Settings(state, domains=("*",)))
        assert status.troubles() == []
        assert vm.chain == [vm.files[-1], vm.files[-2], vm.files[0]]
        assert vm.content() == before
        (line,) = said(capsys)
        assert "vm vda: prune: pruned, length 5, 3 snapshots deleted, " in line
        # Somebody wants it left alone.
        for name in ("one", "two", "three"):
            vm.snapshot(name, "--no-metadata")
        chain = vm.chain
        with Verbs() as verb:
            assert verb("watch", "pause", "vm").status == 0
        assert [disk.state for disk in once(Settings(state, domains=("*",))).disks.values()] == ["paused"]
        assert vm.chain == chain


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--prune", "last"], "'last' is no rule: last=N, hourly=N"),
        (["--prune", "last=1,last=2"], "last is said twice"),
        (["--prune", "daily=-2"], "'-2' is no number of snapshots"),
        (["--prune", "last=0"], "keeps nothing"),
        (["--only", "auto-*"], "--only goes with --prune"),
        (["--prune", "last=1", "--max-length", "5"], "--max-length does not go with it"),
    ],
)
def test_rules_that_say_nothing_are_refused(tmp_path, words, why):
    with Verbs() as verb:
        done = verb("watch", "--qmp", tmp_path / "qmp", "--state", tmp_path, *words)
    assert (done.status, why in done.err) == (2, True), done
