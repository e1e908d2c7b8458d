from pathlib import Path

import pytest

from chainlift.chain.descriptor import MAX_NAME, descriptor_text
from chainlift.chain.linear import Extent, parse_descriptor
from chainlift.errors import ImageError, OperationError
from chainlift.lift.record.pointer import MAX_BACKING_NAME, backing_name, index_descriptor


def test_what_is_written_is_what_is_read():
    extents = [Extent("index.table", 1 << 20, 4096), Extent("../a b:c#%20,é.qcow2", 65536), Extent("/x/y", 512)]
    assert parse_descriptor(descriptor_text(extents)) == extents


def test_no_blank_line_stands_before_the_first_extent():
    text = descriptor_text([Extent("a", 512)])
    assert len(text) % 4096 == 0
    assert "\n\n" not in text[: text.index("RW")]
    assert text.startswith("# Disk DescriptorFile\n")


@pytest.mark.parametrize("name", ['a"b', "a\nb", "a\rb", "x" * (MAX_NAME + 1), "é" * 256])
def test_a_name_that_qemu_could_not_read_is_refused_by_name(name):
    with pytest.raises(ImageError) as refused:
        descriptor_text([Extent("fine", 512), Extent(name, 512)])
    assert refused.value.path == name
    assert "\n" not in str(refused.value)


def test_a_name_of_just_the_longest_length_is_taken():
    descriptor_text([Extent("x" * MAX_NAME, 512)])


def test_more_names_than_qemu_reads_are_refused():
    with pytest.raises(ImageError, match="1 MiB"):
        descriptor_text([Extent("x" * 500, 512)] * 2100)


@pytest.mark.parametrize("extent", [Extent("a", 513), Extent("a", 512, 1), Extent("a", 0)])
def test_extents_are_made_of_sectors(extent):
    with pytest.raises(OperationError):
        descriptor_text([extent])


@pytest.mark.parametrize(
    "text", ["", "KDMV", "# Disk DescriptorFile\n", 'RW 1 FLAT "a" 0\n', descriptor_text([]) + 'RW 1 SPARSE "a"\n']
)
def test_a_descriptor_of_another_kind_is_refused(text):
    with pytest.raises(ImageError):
        parse_descriptor(text)


def test_a_backing_name_leads_back_to_its_descriptor():
    path = Path("/images/a b.qcow2.lift/index-1.vmdk")
    assert index_descriptor(backing_name(path)) == path
    assert backing_name(path).count('"read-only":true') == 3


@pytest.mark.parametrize(
    "name", ["base.qcow2", "json:", "json:{}", "json:[]", 'json:{"file":{"file":{"filename":"/x"}}}', 'json:{"file":1}']
)
def test_other_backing_names_are_not_taken_for_an_index(name):
    assert index_descriptor(name) is None


def test_a_path_that_no_header_could_hold_is_refused():
    with pytest.raises(ImageError, match="1023"):
        backing_name(Path("/" + "x" * MAX_BACKING_NAME))
