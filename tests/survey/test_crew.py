"""Looking at many chains, some of which bite."""

from pathlib import Path

from tests.support.chains import plain_chain
from tests.support.hostile import endless_image

from chainlift.cost.store import nearest_shipped
from chainlift.lift.prune.retention import Retention
from chainlift.survey.crew import Crew
from chainlift.survey.find import find
from chainlift.survey.policy import Policy
from chainlift.survey.settings import Settings

SETTINGS = Settings(Policy(Retention(last=1)), nearest_shipped("7.2"))


def look(directory, processes=2, timeout_s=60.0, settings=SETTINGS, spoil=None):
    found = find([str(directory)], with_libvirt=False)
    with Crew(processes, settings, timeout_s) as crew:
        if spoil is not None:
            spoil(crew)
        records = {Path(chain.path).name: record for chain, record in crew.describe(found.chains)}
        return records, crew.peak_bytes


def test_what_is_said_of_a_chain(tmp_path):
    plain_chain(tmp_path, 4)
    records, peak_bytes = look(tmp_path)
    chain = records["layer4.qcow2"]
    assert (chain.length, chain.virtual_size_bytes) == (4, 4 << 20)
    # Layer 4 has clusters 4, 10, 24; 3 to 1 two more each, for 10 is hidden; the base what is left of its 32.
    assert chain.fall_bytes == tuple(65536 * size for size in (3, 2, 4, 23))
    assert sum(chain.unwritten_bytes) == 32 * 65536
    assert chain.own_shadowed_bytes == chain.shadowed_bytes == 12 * 65536
    assert chain.cost.read_4k_cpu_s_low < chain.cost.read_4k_cpu_s < chain.cost.read_4k_cpu_s_high
    assert chain.advice.verb == "prune"
    assert chain.advice.command == f"chainlift prune {tmp_path}/layer4.qcow2 --keep-last 1"
    assert (chain.advice.snapshots, chain.advice.length) == (2, 2)
    assert chain.advice.cost.read_4k_cpu_s < chain.cost.read_4k_cpu_s
    assert 10 << 20 < peak_bytes < 1 << 30


def test_a_hostile_image_is_a_line_and_the_rest_goes_on(tmp_path):
    endless_image(tmp_path / "endless.qcow2")
    for number in range(4):
        plain_chain(tmp_path / str(number), 2, name=f"disk{number}-{{}}.qcow2")
    records, _ = look(tmp_path, timeout_s=1)
    assert records.pop("endless.qcow2").what == "took longer than 1.00 s"
    assert {record.kind for record in records.values()} == {"chain"}
    assert len(records) == 4


def test_an_image_that_went_meanwhile_is_nothing_that_is_missing(tmp_path):
    image = plain_chain(tmp_path, 2)
    records, _ = look(tmp_path, spoil=lambda _: image.unlink())
    assert not records["layer2.qcow2"].left_out


def test_a_process_that_is_killed_is_told_and_another_one_goes_on(tmp_path):
    for number in range(3):
        plain_chain(tmp_path / str(number), 2, name=f"disk{number}-{{}}.qcow2")

    def kill(crew):
        crew._workers[0].process.kill()
        crew._workers[0].process.wait()

    records, _ = look(tmp_path, processes=1, spoil=kill)
    kinds = [record.kind for record in records.values()]
    assert kinds == ["trouble", "chain", "chain"]
    assert next(iter(records.values())).what == "the process that looked at it ended by SIGKILL"


def test_nobody_is_left_behind(tmp_path):
    endless_image(tmp_path / "endless.qcow2")
    found = find([str(tmp_path)], with_libvirt=False)
    with Crew(1, SETTINGS, 600) as crew:
        crew._give(0, found.chains[0])
        process = crew._workers[0].process
    assert process.returncode is not None


def test_a_broken_chain_is_said_to_be_broken(tmp_path):
    plain_chain(tmp_path, 3)
    (tmp_path / "layer1.qcow2").rename(tmp_path / "elsewhere.qcow2")
    (tmp_path / "layer0.qcow2").unlink()
    records, _ = look(tmp_path)
    chain = records["layer3.qcow2"]
    assert "No such file" in chain.broken
    assert (chain.length, chain.cost, chain.advice) == (1, None, None)
    assert chain.findings[0].level == "problem"
