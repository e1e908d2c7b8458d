import pytest
from click.testing import CliRunner
from tests.support.json_schemas import valid

from chainlift.cli.study import command
from chainlift.errors import InputError, OperationError
from chainlift.results.model import ChainShape
from chainlift.study.chain_store import ChainDirectory
from chainlift.study.kept_chains import delete_chain, kept_chains


@pytest.fixture
def chain(tmp_path):
    chain = ChainDirectory(tmp_path / "chains/offline-1-abc")
    chain.path.mkdir(parents=True)
    for number in (0, 1):
        chain.layer(number).write_bytes(bytes(65536))
    shape = ChainShape(built="offline", virtual_size_bytes=65536, cluster_size_bytes=65536, layer_bytes=[65536, 65536])
    chain.finish(shape, {}, resumed=0)
    return chain


def test_kept_chains_are_listed_and_deleted_by_name(chain):
    root = chain.path.parent
    (root / "scratch").mkdir()
    done = CliRunner().invoke(command, ["chains", "--chains", str(root), "--json"])
    (found,) = valid("study chains", done.stdout)["chains"]
    assert (found["name"], found["length"]) == ("offline-1-abc", 1)
    assert found["bytes_on_disk"] >= 2 * 65536
    assert CliRunner().invoke(command, ["chains", "--chains", str(root), "--delete", found["name"]]).exit_code == 0
    assert [path.name for path in root.iterdir()] == ["scratch"]


def test_a_chain_that_a_study_uses_is_not_deleted(chain):
    with chain.lock(exclusive=False), pytest.raises(OperationError, match="another study uses this chain"):
        delete_chain(chain.path.parent, chain.path.name)
    assert kept_chains(chain.path.parent)[0].length == 1


@pytest.mark.parametrize("name", ["none", "..", "scratch", "../chains", "/etc"])
def test_what_is_no_chain_is_not_deleted(chain, name):
    (chain.path.parent / "scratch").mkdir()
    with pytest.raises(InputError, match="there is no chain"):
        delete_chain(chain.path.parent, name)
    assert chain.layer(1).exists()
    assert (chain.path.parent / "scratch").exists()


def test_one_that_is_not_finished_is_listed_as_such(chain):
    (chain.path / "chain.json").unlink()
    (chain.path / "snapshots.jsonl").write_text("{}\n")
    assert kept_chains(chain.path.parent)[0].length is None
