import json
import shutil
from pathlib import Path

import pytest
from tests.support.chains import plain_chain
from tests.support.lifts import lift_index, lift_squash, restore_lift, verify_lift

from chainlift.cli.main import main
from chainlift.errors import ImageError
from chainlift.lift.at_rest import DiskAtRest
from chainlift.lift.record.lifts import lift_directory
from chainlift.lift.record.manifest import read_manifest, write_text
from chainlift.lift.record.note import note_path
from chainlift.lift.record.pointer import read_pointer
from chainlift.lift.verbs import index

pytestmark = pytest.mark.integration

VERBS = {
    "plan": ["plan"], "index": ["index"], "squash": ["squash"], "delete": ["squash", "--delete-layers"],
    "verify": ["verify"], "restore": ["restore"], "clean": ["restore", "--clean"],
}  # fmt: skip


def lifted(tmp_path, host_qemu):
    image = plain_chain(tmp_path / "c")
    lift_index(image, host_qemu)
    return image, lift_directory(image) / "index-1.json"


def rewrite(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_manifest_comes_back_as_it_was_written(tmp_path, host_qemu):
    image, path = lifted(tmp_path, host_qemu)
    manifest = read_manifest(path)
    assert write_text(manifest) == path.read_text()
    assert manifest.layers[0].tables is not None
    assert manifest.image == str(image)
    assert manifest.used
    assert manifest.original_path == str(image.with_name("layer3.qcow2"))
    assert manifest.supersedes == []


@pytest.mark.parametrize("verb", VERBS)
def test_a_lift_of_a_newer_chainlift_is_refused_and_nothing_touched(tmp_path, host_qemu, contents, capsys, verb):
    image, path = lifted(tmp_path, host_qemu)
    rewrite(path, lambda data: data.update(schema=4, news="of layers"))
    before = contents(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([*VERBS[verb], str(image)])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said == f"chainlift: {path}: has schema 4, this chainlift reads 3; use the chainlift that made it\n"
    assert contents(tmp_path) == before


def as_written_before(image, schema):
    """Make a lift's directory what it was up to schema 2: one record for all of it, and no note beside it."""
    directory = lift_directory(image)
    (record,) = directory.glob("*.json")
    data = json.loads(record.read_text())
    data["schema"] = schema
    for key in ("original_path", "used", "supersedes"):
        del data[key]
    for layer in [*data["layers"], *data["below"]] if schema == 1 else ():
        del layer["tables"]
    (directory / "manifest.json").write_text(json.dumps(data))
    record.unlink()
    note_path(directory).unlink()
    return directory


@pytest.mark.parametrize("schema", [1, 2])
@pytest.mark.parametrize("lift", [lift_index, lift_squash])
def test_lifts_of_older_schemas_are_verified_and_restored(tmp_path, host_qemu, same, reference, lift, schema):
    image = plain_chain(tmp_path / "c")
    raw, before = reference(image, tmp_path / "raw"), image.read_bytes()
    lift(image, host_qemu)
    directory = as_written_before(image, schema)
    manifest, findings = verify_lift(image, content=True)
    assert (manifest.used, manifest.supersedes, findings) == (True, [], [])
    assert same(image, raw)
    restored = restore_lift(image, host_qemu, clean=True)
    assert restored.tidied.kept == {}
    assert directory / "manifest.json" in restored.tidied.removed
    assert not directory.exists()
    assert read_pointer(image)[1] == restored.found[0].lift.manifest.original
    assert len(image.read_bytes()) == len(before)
    assert same(image, raw)


@pytest.mark.parametrize("schema", [1, 2])
@pytest.mark.parametrize("lift", [lift_index, lift_squash])
@pytest.mark.parametrize("clean", [False, True])
def test_lifts_of_older_schemas_are_lifted_again(tmp_path, host_qemu, same, reference, lift, schema, clean):
    image = plain_chain(tmp_path / "c")
    raw = reference(image, tmp_path / "raw")
    first = lift(image, host_qemu)
    first = first[0] if isinstance(first, tuple) else first
    directory = as_written_before(image, schema)
    old = {path.name for path in directory.iterdir()}
    done = index(DiskAtRest(image, host_qemu), clean=clean)
    new = Path(done.manifest.files[-1].path).stem
    ours = {new + suffix for suffix in (".json", ".table", ".vmdk")}
    assert {path.name for path in directory.iterdir()} == (ours if clean else ours | old)
    assert done.manifest.original == first.original
    assert done.manifest.supersedes == [first.files[-1].path]
    assert same(image, raw)
    assert verify_lift(image, content=True)[1] == []
    restore_lift(image, host_qemu, clean=True)
    assert not directory.exists()
    assert same(image, raw)


def test_a_lift_of_an_older_schema_is_found_from_a_renamed_image(tmp_path, host_qemu, same, reference):
    image = plain_chain(tmp_path / "c")
    raw = reference(image, tmp_path / "raw")
    lift_index(image, host_qemu)
    directory = as_written_before(image, 2)
    renamed = image.rename(tmp_path / "c/renamed.qcow2")
    assert verify_lift(renamed, content=True)[1] == []
    restore_lift(renamed, host_qemu, clean=True)
    assert not directory.exists()
    assert same(renamed, raw)


def test_a_squash_of_an_older_schema_whose_layers_were_deleted_is_a_layer(tmp_path, host_qemu, same, reference):
    image = plain_chain(tmp_path / "c")
    raw = reference(image, tmp_path / "raw")
    lift_squash(image, host_qemu, delete_in=[tmp_path])
    directory = as_written_before(image, 2)
    with pytest.raises(ImageError, match="no way back"):
        restore_lift(image, host_qemu)
    lift_index(image, host_qemu)
    assert same(image, raw)
    restore_lift(image, host_qemu, clean=True)
    assert same(image, raw)
    assert {path.name for path in directory.iterdir()} == {"manifest.json", "squash-1.qcow2"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2}', '{"schema": 2, "kind": "index"}', "\xff", "7"])
def test_what_is_no_manifest_is_refused_in_one_line(tmp_path, host_qemu, capsys, text):
    image, path = lifted(tmp_path, host_qemu)
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SystemExit) as ended:
        main(["restore", str(image)])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_other_tables_under_the_same_size_and_times_are_found(tmp_path, host_qemu):
    image, path = lifted(tmp_path, host_qemu)
    layer = image.with_name("layer2.qcow2")
    raw = bytearray(layer.read_bytes())
    # The writer puts the data first: clusters 2, 10 and 22; their one L2 table follows at host cluster 4.
    entries = raw[4 * 65536 : 5 * 65536]
    assert entries[16:24] != bytes(8)
    entries[16:24], entries[80:88] = entries[80:88], entries[16:24]
    raw[4 * 65536 : 5 * 65536] = entries
    layer.write_bytes(raw)
    status = layer.stat()

    def as_it_was(data):
        (found,) = (each["identity"] for each in data["layers"] if each["identity"]["path"] == str(layer))
        found.update(mtime_ns=status.st_mtime_ns, ctime_ns=status.st_ctime_ns)

    rewrite(path, as_it_was)
    findings = verify_lift(image)[1]
    assert [finding.path for finding in findings] == [str(layer)]
    assert "other L2 tables" in findings[0].what


def test_the_tables_of_layers_under_an_older_index_stay_known(tmp_path, host_qemu, tool):
    image, _ = lifted(tmp_path, host_qemu)
    over = tmp_path / "c/over.qcow2"
    tool(host_qemu, "img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", image.name, over)
    tool(host_qemu, "io", "-f", "qcow2", "-c", "write -q -P 1 1M 64k", over)
    manifest = lift_index(over, host_qemu)
    assert len(manifest.layers) == 1 + 1 + 4  # the image, its index's own file, what that points into
    described = [layer for layer in manifest.layers if layer.format == "qcow2"]
    assert len(described) == 5
    assert all(layer.tables is not None for layer in described)
    assert verify_lift(over)[1] == []
    shutil.rmtree(lift_directory(over))
