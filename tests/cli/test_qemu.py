"""``chainlift qemu list``."""

import pytest
from click.testing import CliRunner
from tests.support.json_schemas import valid

from chainlift.cli.qemu import command
from chainlift.qemu.find import find_qemu

pytestmark = pytest.mark.integration


def test_the_hosts_qemu_is_listed_for_people_and_for_programs(monkeypatch, tmp_path):
    monkeypatch.setenv("CHAINLIFT_CACHE", str(tmp_path))
    host = find_qemu("host", need=["system"])
    (found,) = valid("qemu list", CliRunner().invoke(command, ["list", "--json"]).stdout)["qemus"]
    assert (found["qemu"], found["version"]) == ("host", host.version_text)
    assert found["vmdk"]
    table = CliRunner().invoke(command, ["list"], env={"COLUMNS": "160"}).stdout
    assert host.version_text.partition(" ")[0] in table
    assert "blockdev-reopen" in table
