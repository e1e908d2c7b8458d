"""Images and names made to do harm: one clean line each, nothing read that was not allowed, nothing that hangs."""

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys

import numpy as np
import pytest

from chainlift import ChainPolicy, open_chain
from chainlift.chain.extents import map_json
from chainlift.chain.summarize import summarize
from chainlift.errors import ChainliftError, ImageError, PolicyError
from chainlift.host.process import run_tool
from chainlift.qcow2.refcounts import has_preallocated_metadata, read_refcounts
from chainlift.qcow2.writer import ImageWriter, write_image

pytestmark = pytest.mark.timeout(20)

MIB = 1 << 20
ANYWHERE = ChainPolicy()
K64 = 65536

#: Header field -> (offset, struct format).
FIELDS = {
    "magic": (0, ">I"), "version": (4, ">I"), "backing_file_offset": (8, ">Q"), "backing_file_size": (16, ">I"),
    "cluster_bits": (20, ">I"), "size": (24, ">Q"), "crypt_method": (32, ">I"), "l1_size": (36, ">I"),
    "l1_table_offset": (40, ">Q"), "refcount_table_offset": (48, ">Q"), "refcount_table_clusters": (56, ">I"),
    "nb_snapshots": (60, ">I"), "snapshots_offset": (64, ">Q"), "incompatible": (72, ">Q"), "compatible": (80, ">Q"),
    "autoclear": (88, ">Q"), "refcount_order": (96, ">I"), "header_length": (100, ">I"),
    "compression_type": (104, ">B"),
}  # fmt: skip
EXTREMES = [
    0,
    1,
    2,
    9,
    21,
    22,
    63,
    64,
    511,
    513,
    1 << 16,
    (1 << 16) + 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 62,
    1 << 63,
    (1 << 64) - 1,
]


def use_all_of(path, policy=ANYWHERE):
    """Do everything that can be done with an image."""
    with open_chain(path, policy) as chain:
        summarize(chain)
        for _ in zip(map_json(chain), range(10_000), strict=False):
            pass
        for offset in (0, chain.virtual_size // 2, max(0, chain.virtual_size - 4096)):
            with contextlib.suppress(ImageError):
                chain.read(offset, min(4096, chain.virtual_size - offset))


def refusal(path, policy=ANYWHERE):
    with pytest.raises(ChainliftError) as caught:
        use_all_of(path, policy)
    text = str(caught.value)
    assert text.isprintable()
    assert caught.value.exit_status == 2
    return text


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image"
    write_image(
        path, virtual_size=64 * MIB, cluster_size=4096, clusters=range(0, 4000, 3), data=None, backing_file=None
    )
    return path


def patch(path, offset, content):
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(content)


@pytest.mark.parametrize("field", FIELDS)
def test_no_value_of_a_header_field_does_harm(image, field):
    offset, form = FIELDS[field]
    original = image.read_bytes()[:4096]
    limit = 1 << (8 * struct.calcsize(form))
    for value in {value % limit for value in EXTREMES}:
        patch(image, 0, original)
        patch(image, offset, struct.pack(form, value))
        with contextlib.suppress(ImageError, PolicyError):
            use_all_of(image)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("version", 4, "version 4"), ("cluster_bits", 8, "cluster_bits"), ("cluster_bits", 22, "cluster_bits"),
        ("size", 1 << 63, "size"), ("size", 1 << 40, "l1_size"), ("l1_size", (1 << 32) - 1, "l1_size"),
        ("l1_table_offset", 4097, "l1_table_offset"), ("l1_table_offset", 1 << 40, "past the file's end"),
        ("l1_table_offset", (1 << 64) - 4096, "l1_table_offset"), ("refcount_table_offset", 1, "refcount_table_offset"),
        ("refcount_table_clusters", (1 << 32) - 1, "refcount_table_clusters"), ("crypt_method", 3, "crypt_method"),
        ("nb_snapshots", (1 << 32) - 1, "nb_snapshots"), ("nb_snapshots", 7, "snapshot"),
        ("incompatible", 1 << 5, "bit 5"), ("incompatible", 1 << 63, "bit 63"), ("refcount_order", 7, "refcount_order"),
        ("header_length", 100, "header_length"), ("header_length", 5000, "header_length"),
        ("backing_file_offset", 1 << 63, "backing_file_offset"), ("compression_type", 1, "compression_type"),
    ],
)  # fmt: skip
def test_a_broken_header_field_is_named(image, field, value, named):
    if field == "backing_file_offset":
        patch(image, FIELDS["backing_file_size"][0], struct.pack(">I", 10))
    patch(image, FIELDS[field][0], struct.pack(FIELDS[field][1], value))
    text = refusal(image)
    assert text.startswith(f"{image}: ")
    assert named in text


def test_an_unknown_feature_is_refused_by_the_name_that_the_image_gives_it(image):
    patch(image, 72, struct.pack(">Q", 1 << 40))
    patch(image, 112, struct.pack(">IIBB46s", 0x6803F857, 48, 0, 40, b"time travel") + bytes(8))
    assert "bit 40 (time travel)" in refusal(image)


def test_a_file_cut_off_anywhere_is_refused_or_read_but_never_trips_us(image):
    size = image.stat().st_size
    for length in sorted({*range(0, 600, 7), *range(4096, size, 4096), *range(4097, size, 20481)}, reverse=True):
        os.truncate(image, length)
        with contextlib.suppress(ImageError):
            use_all_of(image)
            assert length > 4096 or not length  # tables are behind the header; nothing at all is a raw image


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        (1 << 40, "past the file's end"), (0x200, "not aligned"), (0x00FFFFFFFFFFF000, "past the file's end"),
    ],
)  # fmt: skip
def test_an_l1_entry_that_points_nowhere_is_named(image, entry, named):
    with open_chain(image) as chain:
        l1_offset = chain.layers[0].image.header.l1_table_offset
    patch(image, l1_offset + 8, struct.pack(">Q", entry))
    text = refusal(image)
    assert "L1 entry 1" in text
    assert named in text


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        (1 << 40, "past the file's end"), (0x200, "not aligned"), (0x00FFFFFFFFFF0000, "past the file's end"),
        (1 << 62 | 1 << 50, "past the file's end"),
    ],
)  # fmt: skip
def test_an_l2_entry_that_points_nowhere_is_named(tmp_path, entry, named):
    path = tmp_path / "image"
    with ImageWriter(path, virtual_size=MIB) as writer:
        writer.set_entries(np.array([5]), np.array([entry], dtype=np.uint64))
        writer.finish()
    text = refusal(path)
    assert "L2 entry of guest offset 0x50000" in text
    assert named in text


def test_a_bad_l2_entry_is_named_with_its_layer_however_many_are_decoded_together(tmp_path):
    for name, below in (("0", None), ("1", "0"), ("2", "1"), ("3", "2")):
        with ImageWriter(tmp_path / name, virtual_size=MIB, backing_file=below, backing_format="qcow2") as writer:
            entry = 0x200 if name == "1" else writer.reserve(1)
            writer.set_entries(np.array([int(name) + 4]), np.array([entry], dtype=np.uint64))
            writer.finish()
    text = refusal(tmp_path / "3")
    assert text.startswith(f"{tmp_path}/1: L2 entry of guest offset 0x50000 has a host offset that is not aligned")


def test_what_upper_layers_hide_may_be_malformed_as_for_qemu(tmp_path):
    for name, below in (("0", None), ("1", "0")):
        with ImageWriter(tmp_path / name, virtual_size=MIB, backing_file=below, backing_format="qcow2") as writer:
            entry = 0x200 if name == "0" else writer.reserve(1)
            writer.set_entries(np.array([5]), np.array([entry], dtype=np.uint64))
            writer.finish()
    with open_chain(tmp_path / "1") as chain:
        (line,) = [entry for entry in json.loads("".join(map_json(chain))) if entry["data"]]
    assert (line["start"], line["depth"]) == (5 * K64, 0)
    with open_chain(tmp_path / "1") as chain, pytest.raises(ImageError, match="not aligned"):
        summarize(chain)  # counts what is hidden


@pytest.mark.parametrize("hidden", [False, True])
def test_a_table_that_cannot_be_read_matters_only_where_it_is_seen(tmp_path, hidden):
    below = tmp_path / "below"
    write_image(below, virtual_size=MIB, clusters=[3], data=b"x" * K64)
    write_image(tmp_path / "top", virtual_size=MIB, clusters=range(16) if hidden else [4], data=None,
                backing_file="below", backing_format="qcow2")  # fmt: skip
    with open_chain(tmp_path / "top") as chain:
        table = int(chain.layers[1].image.l2_offsets(0, 1)[0])
        windows = chain.resolve()
        cut = chain.layers[1].image.file
        read = cut.pread_into
        cut.pread_into = lambda buffer, offset: read(buffer, offset) if offset < table else 0
        if hidden:
            assert all((window.layer == 0).all() for window in windows)
        else:
            with pytest.raises(ImageError, match="are cut off"):
                list(windows)


def test_a_refcount_block_that_stands_for_many_is_read_once_at_most(tmp_path):
    # Data are holes here: it looks like preallocated metadata, and refcounts are counted to be sure.
    path = tmp_path / "image"
    write_image(path, virtual_size=MIB, clusters=[3], data=None)
    with open_chain(path) as chain:
        table = chain.layers[0].image.header.refcount_table_offset
        assert has_preallocated_metadata(chain.layers[0].image)
        block = path.read_bytes()[table:][:8]
    patch(path, table, block * 1024)
    os.truncate(path, 1 << 40)
    with open_chain(path) as chain:
        with pytest.raises(ImageError, match="has a block twice"):
            list(read_refcounts(chain.layers[0].image, 1 << 24))
        assert not has_preallocated_metadata(chain.layers[0].image)
    use_all_of(path)


def test_a_zero_flag_in_version_two_is_refused(tmp_path):
    path = tmp_path / "image"
    with ImageWriter(path, virtual_size=MIB, version=2) as writer:
        writer.set_entries(np.array([5]), np.array([1], dtype=np.uint64))
        writer.finish()
    assert "zero flag" in refusal(path)


def test_a_bitmap_that_contradicts_itself_is_refused(tmp_path):
    write_image(
        tmp_path / "image", virtual_size=MIB, extended_l2=True, clusters=[3], data=None, subclusters=[1 | 1 << 32]
    )
    assert "contradicts itself" in refusal(tmp_path / "image")


def test_tables_shared_between_l1_entries_are_refused_at_once(tmp_path):
    # 64 MiB of file that would stand for 2 EiB of reading.
    path = tmp_path / "bomb"
    write_image(path, virtual_size=1 << 40, clusters=[0], data=None)
    with open_chain(path) as chain:
        header = chain.layers[0].image.header
    l1 = path.read_bytes()[header.l1_table_offset :][:8]
    patch(path, header.l1_table_offset, l1 * header.l1_size)
    assert "share an L2 table" in refusal(path)


@pytest.mark.parametrize("compression", ["zlib", "zstd"])
def test_a_damaged_compressed_cluster_is_named_and_never_grows(tmp_path, compression):
    path = tmp_path / "image"
    write_image(path, virtual_size=MIB, clusters=[1], data=bytes(K64), compress=True, compression=compression)
    with open_chain(path) as chain:
        (window,) = chain.resolve()
        host = int(window.host_offset[1])
    patch(path, host, b"\xff\xfe\xfd\xfc" * 4)
    with open_chain(path) as chain, pytest.raises(ImageError, match=f"compressed cluster at {host:#x} is damaged"):
        chain.read(K64, 512)


@pytest.mark.parametrize(
    "name",
    [
        b"line\nbreak", b"\xff\xfe\x80", b"\x1b[2Jclear", b"x" * 1023, "schön und \u202egut".encode(), b"a\0b", b"//",
        b".",
    ],
)  # fmt: skip
def test_a_strange_backing_name_is_one_printable_line(tmp_path, name):
    write_image(tmp_path / "image", virtual_size=MIB, backing_file=name, backing_format="raw")
    refusal(tmp_path / "image")


@pytest.mark.parametrize("length", [1024, 4000, (1 << 32) - 1])
def test_a_backing_name_that_is_too_long_is_refused(image, length):
    patch(image, 8, struct.pack(">QI", 1000, length))
    assert "backing_file_size" in refusal(image)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nbd://localhost/x", "'nbd'"), ("http://example.org/x", "'http'"), ("fat:rw:/etc", "'fat'"),
        ("blkdebug::x", "'blkdebug'"),
        ('json:{"driver":"nbd","host":"localhost"}', "'nbd'"),
        ('json:{"driver":"qcow2","file":{"driver":"https","url":"https://example.org/x"}}', "'https'"),
        ('json:{"driver":"blkverify"}', "'blkverify'"),
    ],
)  # fmt: skip
def test_what_is_no_local_file_is_refused_by_name(tmp_path, name, reason):
    write_image(tmp_path / "image", virtual_size=MIB, backing_file=name, backing_format="raw")
    with pytest.raises(PolicyError) as caught:
        use_all_of(tmp_path / "image")
    assert reason in str(caught.value)
    assert str(tmp_path / "image") in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "json:", "json:[]", "json:{", 'json:{"file":5}', 'json:{"file":{}}', 'json:{"file":{"filename":7}}',
        'json:{"file":"node0"}', 'json:{"file.filename":"x","file":"y"}', "json:" + "[" * 900,
        'json:{"driver":["qcow2"]}',
        'json:{"driver":"qcow2","backing":"node0","file":{"filename":"x"}}', 'json:{"file":{"filename":"x\\u0000y"}}',
        'json:{"driver":"raw","offset":512,"file":{"filename":"x"}}', 'json:{"file":{"driver":{},"filename":"x"}}',
    ],
)  # fmt: skip
def test_json_that_describes_no_local_file_is_refused(tmp_path, name):
    write_image(tmp_path / "image", virtual_size=MIB, backing_file=name)
    refusal(tmp_path / "image")


@pytest.mark.parametrize("kind", ["directory", "fifo", "socket", "device", "link to a fifo", "missing"])
def test_only_files_and_block_devices_are_opened(tmp_path, monkeypatch, kind):
    backing = tmp_path / "backing"
    if kind == "directory":
        backing.mkdir()
    elif kind == "fifo":
        os.mkfifo(backing)
    elif kind == "socket":
        monkeypatch.chdir(tmp_path)  # the name of a socket has at most 108 bytes
        socket.socket(socket.AF_UNIX).bind("backing")
    elif kind == "link to a fifo":
        os.mkfifo(tmp_path / "fifo")
        backing.symlink_to("fifo")
    elif kind == "device":
        backing = "/dev/zero"
    write_image(tmp_path / "image", virtual_size=MIB, backing_file=backing, backing_format="raw")
    text = refusal(tmp_path / "image")
    assert str(backing) in text
    assert {
        "directory": "a directory",
        "socket": "a socket",
        "device": "a character device",
        "missing": "No such file",
    }.get(kind, "a FIFO") in text


def test_a_chain_that_leads_back_to_itself_is_refused(tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a").symlink_to("../a")
    write_image(tmp_path / "a", virtual_size=MIB, backing_file="b", backing_format="qcow2")
    write_image(tmp_path / "b", virtual_size=MIB, backing_file="links/a", backing_format="qcow2")
    assert "loop" in refusal(tmp_path / "a")


def test_a_chain_longer_than_the_policy_allows_is_refused(tmp_path):
    for index in range(4):
        backing = {"backing_file": str(index - 1), "backing_format": "qcow2"} if index else {}
        write_image(tmp_path / str(index), virtual_size=MIB, **backing)
    use_all_of(tmp_path / "3", ChainPolicy(max_depth=3))
    assert "more than 2 layers" in refusal(tmp_path / "3", ChainPolicy(max_depth=2))


@pytest.mark.parametrize("how", ["dots", "absolute", "link", "data file"])
def test_nothing_outside_the_allowed_directories_is_opened(tmp_path, how):
    inside, secret = tmp_path / "inside", tmp_path / "secret"
    inside.mkdir()
    secret.write_bytes(b"s" * 512)
    name = {"dots": "../secret", "absolute": str(secret), "link": "link", "data file": "none"}[how]
    (inside / "link").symlink_to(secret)
    write_image(inside / "image", virtual_size=MIB, backing_file=name, backing_format="raw")
    if how == "data file":
        content = b"../secret".ljust(16, b"\0")
        patch(inside / "image", 72, struct.pack(">Q", 4))
        patch(
            inside / "image",
            112,
            struct.pack(">II", 0x44415441, len(str(secret))) + str(secret).encode().ljust(len(content) * 20, b"\0"),
        )
        patch(inside / "image", 8, bytes(12))
    with pytest.raises(PolicyError, match="outside"):
        use_all_of(inside / "image", ChainPolicy(within=(inside,)))


def test_an_image_that_is_replaced_while_it_is_read_is_noticed(tmp_path):
    path = tmp_path / "image"
    write_image(path, virtual_size=MIB, clusters=[0], data=b"a" * K64)
    with open_chain(path) as chain:
        chain.layers[0].file.close()  # as the descriptor pool does when there are too many
        path.rename(tmp_path / "old")
        write_image(path, virtual_size=MIB, clusters=[0], data=b"b" * K64)
        with pytest.raises(ImageError, match="was replaced"):
            chain.read(0, 1)


@pytest.mark.parametrize("verb", [("inspect",), ("inspect", "--json"), ("map",), ("map", "--json")])
def test_the_verbs_say_one_line_and_take_little_memory(tmp_path, verb):
    path = tmp_path / "image"
    write_image(path, virtual_size=1 << 44, cluster_size=2 * MIB, clusters=[0, 1 << 22], data=None)
    patch(path, FIELDS["nb_snapshots"][0], struct.pack(">IQ", 65536, (1 << 64) - 2 * MIB))
    with open_chain(path) as chain:
        l1_offset = chain.layers[0].image.header.l1_table_offset
    patch(path, l1_offset + 8 * 16, struct.pack(">Q", 1 << 50))
    command = [sys.executable, "-m", "chainlift", *verb, str(path)]
    ended = run_tool(command, timeout_s=20, check=False)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith(f"chainlift: {path}: L1 entry 16")
    assert "Traceback" not in ended.stdout + ended.stderr
    assert ended.peak_rss_bytes < 200 << 20


def test_json_output_survives_names_that_are_no_text(tmp_path):
    name = b"base\xff\n.raw"
    (tmp_path / os.fsdecode(name)).write_bytes(b"x" * 512)
    write_image(tmp_path / "image", virtual_size=MIB, backing_file=name, backing_format="raw")
    for verb in ("inspect", "map"):
        done = subprocess.run(
            [sys.executable, "-m", "chainlift", verb, "--json", str(tmp_path / "image")],
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)
