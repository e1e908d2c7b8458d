"""After a move, relink asks libvirt's definitions, too."""

import json
import re

import pytest
from tests.support.libvirt import virsh
from tests.support.stock import read

pytestmark = [pytest.mark.integration, pytest.mark.needs("libvirt")]


def moved(machine, *files):
    attic = machine.images / "attic"
    attic.mkdir()
    found = [path.rename(attic / path.name) for path in files]
    machine.give_to_libvirt()
    return found


def test_a_definition_follows_the_headers_to_a_layer_that_was_moved(verb, machine):
    # The definition says what is below from then on, and the next start believes it.
    machine.snapshot("one")
    before = machine.content()
    virsh("destroy", "vm")
    (layer,) = moved(machine, machine.files[-1])
    assert str(machine.files[-1]) in virsh("dumpxml", "vm")
    said = verb("relink", machine.images)
    assert said.status == 0, said
    assert f"the definition of domain vm follows the headers below {machine.images}/one.qcow2 now" in said.err
    assert str(machine.files[-1]) not in virsh("dumpxml", "vm", "--inactive")
    virsh("start", "vm")
    assert machine.chain[1] == layer
    assert machine.content() == before


def test_a_domain_whose_disk_was_moved_is_named_with_what_changes_it(verb, machine):
    machine.snapshot("one")
    virsh("destroy", "vm")
    one = machine.images / "one.qcow2"
    *_, now = moved(machine, *machine.files, one)
    before = virsh("dumpxml", "vm", "--inactive")
    dry = verb("relink", now.parent, "--dry-run", "--json")
    assert dry.status == 0, dry
    (domain, snapshot) = json.loads(dry.out)["libvirt"]
    assert domain.startswith("domain vm names 2 files that are not there: ")
    assert f"{one} is {now} now" in domain
    assert domain.endswith("virsh edit vm changes it; what it says in <backingStore> can be left out")
    assert re.match(r"snapshot one of domain vm names \d+ files that are not there: ", snapshot)
    assert "virsh snapshot-edit vm one changes it" in snapshot
    done = verb("relink", now.parent)
    assert done.status == 0, done
    assert f"chainlift: {domain}" in done.err.splitlines()
    assert virsh("dumpxml", "vm", "--inactive") == before
    assert read(now)
