"""Domains of a real libvirt among the chains."""

import pytest
from tests.support.domain import Machine
from tests.support.libvirt import running_libvirtd, virsh

from chainlift.cost.store import nearest_shipped
from chainlift.survey.crew import Crew
from chainlift.survey.find import find
from chainlift.survey.settings import Settings

pytestmark = [pytest.mark.integration, pytest.mark.needs("libvirt")]


def records(*paths):
    found = find([str(path) for path in paths])
    with Crew(1, Settings(None, nearest_shipped("7.2")), 60) as crew:
        return [record for _, record in crew.describe(found.chains)]


def test_a_domains_disk_is_found_wherever_it_lies_and_its_command_names_the_domain(tmp_path):
    with running_libvirtd() as place, Machine(place, 9, start=False, name="it's vm") as machine:
        (chain,) = records(tmp_path)
        assert chain.path == str(machine.files[-1])
        assert [(use.domain, use.target, use.is_running) for use in chain.uses] == [("it's vm", "vda", False)]
        assert not chain.is_running
        assert (chain.advice.verb, chain.advice.command) == ("squash", f"chainlift squash {machine.files[-1]}")
        assert chain.libvirt_longest in (24, 199)
        virsh("start", "it's vm")
        (chain,) = records(tmp_path)
        assert chain.is_running
        assert chain.advice.command == "chainlift squash --libvirt 'it'\"'\"'s vm' --device vda"
        assert [(use.domain, use.is_running) for use in chain.uses] == [("it's vm", True)]
