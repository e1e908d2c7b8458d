"""Asking libvirt: one virsh answers the questions, and what it does not answer well is asked by another."""

import signal

import pytest
from tests.support.libvirt import libvirtd_of, virsh

from chainlift.errors import InputError, QemuError
from chainlift.host.virsh import Domain, Virsh, find_uuid

pytestmark = pytest.mark.needs("libvirt")


@pytest.fixture
def asked(machine):
    opened = Virsh(Domain(machine.name))
    yield opened
    opened.close()


def test_an_answer_is_what_a_virsh_of_its_own_prints(machine, asked):
    for words in (["domstate"], ["dumpxml"], ["dumpxml", "--inactive"], ["blockjob", "vda", "--raw"]):
        assert asked.ask(*words).strip() == virsh(words[0], machine.name, *words[1:]).strip()
    assert asked.is_persistent()
    assert f"daemon: {'.'.join(map(str, asked.daemon_version))}" in virsh("version", "--daemon")


def test_a_word_is_a_word(asked):
    for word in (
        "it's",
        "two words",
        "a; echo b",
        '"two"',
        "back\\slash",
        "$HOME",
        "#",
        "",
        "\t\n",
        "ümlaut",
        "x" * 5000,
    ):
        assert asked.ask("echo", word) == f"{asked.uuid} {word}"


def test_what_virsh_complains_of_is_asked_again_for_its_words(asked):
    first = asked._shell
    with pytest.raises(QemuError, match="no domain snapshot with matching name"):
        asked.ask("snapshot-dumpxml", "--snapshotname", "nothing")
    assert asked.is_running()
    assert asked._shell is not first


def test_a_virsh_that_was_killed_is_started_again(asked):
    asked._shell._process.send_signal(signal.SIGKILL)
    asked._shell._process.wait()
    assert [asked.ask("domstate").strip() for _ in range(2)] == ["running", "running"]


def test_a_libvirtd_that_was_restarted_is_asked_again(place, asked):
    daemon = libvirtd_of(place)
    daemon.stop()
    daemon.start()
    assert [asked.ask("domstate").strip() for _ in range(2)] == ["running", "running"]


def test_a_domain_is_found_by_name_id_and_uuid(machine):
    uuid = virsh("domuuid", machine.name).strip()
    for name in (machine.name, virsh("domid", machine.name).strip(), uuid, uuid.upper()):
        assert find_uuid(Domain(name)) == uuid
        assert Virsh(Domain(name)).uuid == uuid
    for name in ("nobody", "7" * 8 + "-7777" * 3 + "-" + "7" * 12, "", "-c"):
        with pytest.raises(InputError):
            Virsh(Domain(name))
