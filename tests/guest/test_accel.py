import json

import pytest
from tests.support.kvm import kvm_without_kvm

from chainlift.errors import InputError
from chainlift.guest import accel
from chainlift.guest.accel import choose_accelerator
from chainlift.guest.interface import GuestImage
from chainlift.qemu.binary import Qemu
from chainlift.qemu.find import find_qemu
from chainlift.report import document, write_report
from chainlift.study.plan_file import parse_plan
from chainlift.study.progress import Silent
from chainlift.study.runner import run_study

FAKE = Qemu("host", None, None, None, None, (7, 2, 0), "7.2.0", "host")


@pytest.fixture
def trials(tmp_path, monkeypatch):
    """Count the trials of KVM, and say what comes of them."""

    class Trials:
        count = 0
        failure: str | None = None

    def try_kvm(qemu, deadline_s):
        Trials.count += 1
        return Trials.failure, "a guest booted under KVM in 1.20 s"

    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(accel, "_DEVICE", device)
    monkeypatch.setattr(accel, "_try_kvm", try_kvm)
    monkeypatch.setattr(accel.MicroGuest, "prepare", lambda self: GuestImage("made up"))
    monkeypatch.setenv("CHAINLIFT_CACHE", str(tmp_path / "cache"))
    return Trials


def test_tcg_is_taken_at_its_word(trials):
    assert choose_accelerator("tcg", FAKE) == ("tcg", "asked for")
    assert trials.count == 0


def test_kvm_is_believed_after_a_boot_and_tried_once(trials):
    for wanted in ("auto", "kvm"):
        assert choose_accelerator(wanted, FAKE) == ("kvm", "a guest booted under KVM in 1.20 s")
    assert trials.count == 1


def test_a_failed_boot_means_tcg_with_the_reason(trials):
    trials.failure = "the guest did not come up within 20 s; its console ends: nothing was written to it"
    assert choose_accelerator("auto", FAKE) == ("tcg", f"KVM does not work here: {trials.failure}")
    with pytest.raises(InputError, match="KVM does not work here: the guest did not come up"):
        choose_accelerator("kvm", FAKE)
    assert trials.count == 1


def test_no_device_needs_no_trial(trials, tmp_path, monkeypatch):
    monkeypatch.setattr(accel, "_DEVICE", tmp_path / "none")
    assert choose_accelerator("auto", FAKE) == ("tcg", "KVM does not work here: there is no /dev/kvm")
    assert trials.count == 0


@pytest.mark.integration
def test_the_choice_on_this_host_is_one_that_boots(tmp_path):
    choice = choose_accelerator("auto", find_qemu())
    assert choice.name in ("kvm", "tcg")
    assert choice.reason
    if choice.name == "tcg":
        with pytest.raises(InputError):
            choose_accelerator("kvm", find_qemu())


STUDY = """
name = "under-kvm"
lengths = [1]
tests = ["memory"]
repeats = 1
accelerator = "kvm"
qemu = ["QEMU"]
chains = "CHAINS"
[guest]
memory = "512M"
vcpus = 1
[chain]
build = "offline"
length = 1
size = "256M"
[chain.workload]
size = "16M"
"""


@pytest.mark.integration
def test_a_host_with_kvm_is_believed_told_and_recorded(tmp_path, monkeypatch):
    """The whole way, with a QEMU that emulates what it is asked for."""
    qemu = kvm_without_kvm(tmp_path / "qemu")
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(accel, "_DEVICE", device)
    monkeypatch.setattr(accel, "cache_dir", lambda part: tmp_path)
    choice = choose_accelerator("auto", qemu, deadline_s=240)
    assert choice.name == "kvm", choice.reason
    assert choice.reason.startswith("a guest booted under KVM in ")
    asked = [json.loads(line) for line in (tmp_path / "qemu/asked.jsonl").read_text().splitlines()]
    (trial,) = (words for words in asked if "-accel" in words)
    for option, value in (("-accel", "kvm"), ("-cpu", "host")):
        assert trial[trial.index(option) + 1] == value
    told = trial[trial.index("-append") + 1].split()
    assert not {"no_timer_check", "clearcpuid=cx16"} & set(told)

    text = STUDY.replace("QEMU", str(tmp_path / "qemu"))
    text = text.replace("CHAINS", str(tmp_path / "chains"))
    results = run_study(parse_plan(text), tmp_path / "out", Silent())
    assert {sample.outcome for sample in results.samples()} == {"ok"}
    asked = [json.loads(line) for line in (tmp_path / "qemu/asked.jsonl").read_text().splitlines()]
    assert all(words[words.index("-accel") + 1] == "kvm" for words in asked if "-accel" in words)
    environment = results.environment()
    assert [(q.accelerator, q.accelerator_reason) for q in environment.qemus] == [("kvm", choice.reason)]
    assert not [limit for limit in environment.limits if "KVM" in limit]
    found = document([results.path])
    assert not [warning for warning in found.warnings if "emulated" in warning or "KVM" in warning]
    page = write_report([results.path]).read_text()
    assert f"KVM ({choice.reason})" in page
    assert "emulated CPU" not in page
