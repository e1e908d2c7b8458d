import pytest

from chainlift.units import counted, format_age, format_bytes, format_ratio, format_seconds, parse_size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1024, "1.00 KiB"),
        (4.9 * 2**20, "4.90 MiB"),
        (20 * 2**30, "20.0 GiB"),
        (-2048, "-2.00 KiB"),
    ],
)
def test_bytes(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 extents"), (1, "1 extent"), (2, "2 extents"), (1089, "1,089 extents")]
)
def test_numbers_of_things(count, text):
    assert counted(count, "extent") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.00 s"),
        (9e-6, "9.0 µs"),
        (0.0295, "29.5 ms"),
        (1.45, "1.45 s"),
        (41.4, "41.4 s"),
        (125, "2 min 05 s"),
        (3720, "1 h 02 min"),
    ],
)
def test_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_ratio():
    assert [format_ratio(r) for r in (1.25, 43.2)] == ["1.25x", "43x"]


@pytest.mark.parametrize(("text", "size"), [("64k", 65536), ("20G", 20 << 30), ("1.5 MiB", 1572864), ("512", 512)])
def test_sizes_as_qemu_img_reads_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "1X", "1 2"])
def test_no_size(text):
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (200_000, "2 d"), (100_000_000, "3 y")],
)
def test_ages(seconds, text):
    assert format_age(seconds) == text
