"""Bars and shares, as several verbs draw them."""

from __future__ import annotations

_EIGHTHS = " ▏▎▍▌▋▊▉█"


def bar(part: float, whole: float, width: int, *, can_draw: bool) -> str:
    """Return a bar.

    :param whole: what has a bar of the whole width.
    :param width: columns.
    :param can_draw: whether the terminal has block characters.
    """
    if not whole or not part:
        return ""
    if not can_draw:
        return "#" * max(1, round(width * part / whole))
    eighths = max(1, round(width * 8 * part / whole))
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def percent(part: float, whole: float) -> str:
    """Write a share: ``0 %``, ``<0.1 %``, ``12.3 %``."""
    share = 100 * part / whole if whole else 0.0
    return "0 %" if not part else "<0.1 %" if share < 0.05 else f"{share:.1f} %"
