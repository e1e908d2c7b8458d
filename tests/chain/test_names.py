"""Backing file names, as QEMU understands them."""

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainlift import open_chain
from chainlift.chain.names import Reference, format_reference, parse_name
from chainlift.errors import ChainliftError, InputError
from chainlift.qcow2.writer import write_image

MIB = 1 << 20


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("base", "/images/base"),
        ("../base", "/images/../base"),
        ("/abs/base", "/abs/base"),
        ("file:base", "base"),
        ("file:/abs/base", "/abs/base"),
        ("host_device:/dev/sda", "/dev/sda"),
        ("sub/a:b", "/images/sub/a:b"),
        ("./a:b", "/images/./a:b"),
        ('json:{"file.filename":"base"}', "base"),
        ('json:{"file.filename":"a:b"}', "a:b"),
        ('json:{"driver":"qcow2","file":{"driver":"file","filename":"/abs/base"}}', "/abs/base"),
        ('json:{"driver":"qcow2","file":{"driver":"file","filename":"a:b"}}', "a:b"),
        ('json:{"driver":"raw","file":{"driver":"raw","file":{"driver":"file","filename":"x"}}}', "x"),
    ],
)
def test_a_name_leads_to_a_path(name, path):
    assert parse_name(name, named_in="/images/top").path == path


def test_a_link_to_an_overlay_counts_where_the_link_is():
    assert parse_name("base", named_in="link").path == "base"
    assert parse_name("base", named_in="/link").path == "/base"


def test_the_format_beside_a_name_wins_over_the_one_in_it():
    name = 'json:{"driver":"qcow2","file":{"driver":"file","filename":"x"}}'
    assert parse_name(name, file_format="raw").format == "raw"
    assert parse_name(name).format == "qcow2"


@pytest.mark.integration
@pytest.mark.parametrize("style", ["plain", "json", "file", "null", "other"])
def test_qemu_reads_the_same_file_under_the_same_name(tmp_path, monkeypatch, style):
    directory = tmp_path / "sub"
    directory.mkdir()
    for name, letter in (("sub/base", b"s"), ("base", b"w"), ("deep", b"d")):
        write_image(tmp_path / name, virtual_size=MIB, clusters=[0], data=letter * 65536)
    write_image(directory / "middle", virtual_size=MIB, backing_file="base", backing_format="qcow2")
    middle = {"driver": "qcow2", "file": {"driver": "file", "filename": f"{directory}/middle"}}
    other = {"driver": "qcow2", "file": {"driver": "file", "filename": f"{tmp_path}/deep"}}
    backing = {
        "plain": "base",
        "json": 'json:{"driver":"qcow2","file.driver":"file","file.filename":"base"}',
        "file": "file:base",
        "null": "json:" + json.dumps({**middle, "backing": None}),
        "other": "json:" + json.dumps({**middle, "backing": other}),
    }[style]
    write_image(directory / "top", virtual_size=MIB, backing_file=backing, backing_format="qcow2")
    monkeypatch.chdir(tmp_path)
    subprocess.run(["qemu-img", "convert", "-O", "raw", "sub/top", "whole"], check=True, timeout=60)
    with open_chain("sub/top") as chain:
        assert chain.read(0, 1) == (tmp_path / "whole").read_bytes()[:1]


def test_a_chain_given_as_json_is_opened_too(tmp_path):
    write_image(tmp_path / "image", virtual_size=MIB)
    name = "json:" + json.dumps({"driver": "qcow2", "file": {"driver": "file", "filename": str(tmp_path / "image")}})
    with open_chain(name) as chain:
        assert chain.virtual_size == MIB


def test_a_missing_layer_is_named_with_the_one_that_names_it(tmp_path):
    write_image(tmp_path / "top", virtual_size=MIB, backing_file="gone", backing_format="qcow2")
    with pytest.raises(ChainliftError) as caught:
        open_chain(tmp_path / "top")
    assert str(caught.value) == (
        f"{tmp_path}/gone: cannot be opened: No such file or directory; it is the backing file of {tmp_path}/top"
    )


# A file name has any character but "/" and NUL; whether QEMU has it in UTF-8 is another matter.
_NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1)
_PATHS = st.builds(lambda parts, start: start + "/".join(parts), st.lists(_NAMES, min_size=1, max_size=3),
                   st.sampled_from(["", "/", "/../"]))  # fmt: skip
_FILES = st.builds(Reference, _PATHS, st.just("raw"))
_LAYERS = st.recursive(
    st.one_of(_FILES, st.builds(Reference, _PATHS, st.sampled_from([None, "qcow2"]))),
    lambda below: st.one_of(
        st.builds(Reference, _PATHS, st.sampled_from([None, "qcow2"]), st.just(False), st.one_of(st.none(), below),
                  st.one_of(st.none(), _FILES)),
        st.builds(Reference, _PATHS, st.just("qcow2"), is_descriptor=st.just(True)),
    ),
    max_leaves=4,
)  # fmt: skip


def absolute(reference, directory):
    if reference is None:
        return None
    return Reference(
        f"{directory}/{reference.path.removeprefix('./')}".replace("//", "/")
        if not reference.path.startswith("/")
        else reference.path,
        reference.format,
        reference.follows_header,
        absolute(reference.backing, directory),
        absolute(reference.data_file, directory),
        reference.is_descriptor,
    )


@given(_LAYERS)
def test_a_reference_is_understood_again_under_the_name_that_is_written_for_it(reference):
    name = format_reference(reference)
    again = parse_name(name, file_format=reference.format)
    assert absolute(again, "/d") == absolute(reference, "/d" if not name.startswith("json:") else Path.cwd())


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        (Reference("base", "qcow2"), "base"),
        (Reference("a:b", "qcow2"), "./a:b"),
        (Reference("json:{}", "raw"), "./json:{}"),
        (Reference("d/a:b", "qcow2"), "d/a:b"),
        (Reference("/a:b", "raw", follows_header=False), "/a:b"),
        (
            Reference("/x", "qcow2", follows_header=False),
            'json:{"driver":"qcow2","file":{"driver":"file","filename":"/x"},"backing":null}',
        ),
    ],
)
def test_a_name_is_plain_where_it_overrides_nothing(reference, name):
    assert format_reference(reference) == name


def test_a_name_that_json_cannot_carry_is_refused():
    assert format_reference(Reference("/\udcff")) == "/\udcff"
    with pytest.raises(InputError, match="no UTF-8"):
        format_reference(Reference("/\udcff", follows_header=False))


@pytest.mark.integration
@pytest.mark.parametrize(
    "directory", ["plain", "co:lon", 'qu"o\\te', "per%cent", "com,ma", "ümlaut \U0001f4be", "new\nline"]
)
@pytest.mark.parametrize("style", ["plain", "null", "other", "data file", "probed"])
def test_qemu_reads_what_a_reference_was_opened_as(tmp_path, monkeypatch, qemu_img, guest_view, directory, style):
    place = tmp_path / directory
    place.mkdir()
    monkeypatch.chdir(tmp_path)
    for name, letter in (("base", b"b"), ("other:1", b"o")):
        write_image(place / name, virtual_size=MIB, clusters=[0], data=letter * 65536)
    path, said = f"{directory}/mid:dle", "qcow2"
    write_image(Path(path), virtual_size=MIB, clusters=[1], data=b"m" * 65536, backing_file="base", backing_format=said)
    reference = {
        "plain": Reference(path, said),
        "null": Reference(path, said, follows_header=False),
        "other": Reference(path, said, follows_header=False, backing=Reference(f"{directory}/other:1", said)),
        "probed": Reference(path, None, follows_header=False, backing=Reference(f"{directory}/other:1")),
    }.get(style)
    if reference is None:
        (place / "raw:1").write_bytes(b"r" * MIB)
        options = f"data_file=./{path.replace(',', ',,')}.d,data_file_raw=on"
        qemu_img("create", "-q", "-f", "qcow2", "-o", options, f"./{path}.x", "1M")
        reference = Reference(f"./{path}.x", said, data_file=Reference(f"{directory}/raw:1", "raw"))
    name = format_reference(reference)
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", name, "overlay", "1M")
    with open_chain("overlay") as chain:
        assert chain.layers[1].reference == parse_name(name, named_in="overlay", file_format="qcow2")
        assert chain.layers[1].reference.backing == absolute(reference.backing, tmp_path)
        ours = chain.read(0, MIB)
    assert ours == guest_view("overlay")
    assert ours[:1] == {"plain": b"b", "null": b"\0", "data file": b"r"}.get(style, b"o")
