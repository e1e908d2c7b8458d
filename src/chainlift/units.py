"""How quantities are written for people: one formatter a unit."""

from __future__ import annotations

import re

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
#: Of a number that a file's size may be written with.
_MAX_DIGITS = 100
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtpe]?)(?:i?b)?", re.IGNORECASE)


def format_bytes(count: float) -> str:
    """Write a number of bytes with a binary prefix and at most three significant digits: ``4.88 MiB``."""
    sign, count = ("-", -count) if count < 0 else ("", count)
    power = 0
    while count >= 999.5 and power < len(_BINARY) - 1:
        count /= 1024
        power += 1
    if power == 0:
        return f"{sign}{count:.0f} B"
    digits = 2 if count < 9.995 else 1 if count < 99.95 else 0
    return f"{sign}{count:.{digits}f} {_BINARY[power]}"


def counted(count: int, noun: str) -> str:
    """Write a number of things: ``1 layer``, ``2 layers``, ``1,000 layers``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def format_seconds(seconds: float) -> str:
    """Write a duration in the unit that fits: ``850 ns``, ``9.0 µs``, ``29.5 ms``, ``1.45 s``, ``1 h 02 min``."""
    if seconds < 0:
        return "-" + format_seconds(-seconds)
    if seconds >= 3600:
        minutes = round(seconds / 60)
        return f"{minutes // 60} h {minutes % 60:02d} min"
    if seconds >= 100:
        whole = round(seconds)
        return f"{whole // 60} min {whole % 60:02d} s"
    if seconds >= 1 or seconds == 0:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    for scale, unit in ((1e3, "ms"), (1e6, "µs"), (1e9, "ns")):
        value = seconds * scale
        if value >= 0.9995 or unit == "ns":
            return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"
    raise AssertionError("unreachable")


def format_age(seconds: float) -> str:
    """Write how long ago something was, in one whole unit: ``12 s``, ``5 min``, ``3 h``, ``12 d``, ``2 y``."""
    for scale, unit, most in ((1, "s", 120), (60, "min", 120), (3600, "h", 48), (86400, "d", 1000)):
        if seconds < scale * most:
            return f"{max(0, int(seconds // scale))} {unit}"
    return f"{int(seconds // (365.25 * 86400))} y"


def format_ratio(ratio: float) -> str:
    """Write how many times: ``1.25x``, ``43x``."""
    return f"{ratio:.2f}x" if ratio < 9.995 else f"{ratio:.0f}x"


def parse_size(text: str) -> int:
    """Read a size as qemu-img does: ``64k``, ``1.5G``, ``20G``, a plain number of bytes; binary prefixes.

    :raise ValueError: if the text is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size (examples: 64k, 20G, 1048576)")
    power = "kmgtpe".find(match[2].lower()) + 1 if match[2] else 0
    if len(match[1]) > _MAX_DIGITS:
        raise ValueError(f"{text!r} is more than 2^63 - 1 bytes")
    size = int(float(match[1]) * 1024**power) if "." in match[1] else int(match[1]) << (10 * power)
    if size >= 1 << 63:
        raise ValueError(f"{text!r} is more than 2^63 - 1 bytes")
    return size
