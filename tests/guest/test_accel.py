import pytest

from chainlift.errors import InputError
from chainlift.guest import accel
from chainlift.guest.accel import choose_accelerator
from chainlift.guest.interface import GuestImage
from chainlift.qemu.binary import Qemu, find_qemu

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
