"""Backing file names, as QEMU understands them."""

import json
import subprocess

import pytest

from chainlift import open_chain
from chainlift.chain.names import parse_name
from chainlift.errors import ChainliftError
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
