"""How figures look, and how a matplotlib figure becomes an SVG in the page, an SVG file and a PNG file.

Text is kept as text in the page, so that it can be searched, selected and read out, and follows the reader's font and
colour scheme; it is drawn as paths in the files, which look the same wherever they are opened. The same input gives the
same bytes: no dates, no random identifiers, and matplotlib's own font.
"""

from __future__ import annotations

import io
import re
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from chainlift.errors import MissingToolError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The page's colours in light. The hues are Okabe and Ito's, which people with any colour vision can tell apart; no
#: figure relies on hue alone. No value occurs twice: by its value a colour becomes a variable of the style sheet.
INK, MUTED, GRID, PAPER = "#1c2126", "#5f6973", "#dbe0e5", "#fefefe"
PLAIN, INDEX, SQUASH, PUBLISHED, ALERT = "#0072b2", "#e69f00", "#009e73", "#9aa3ac", "#c8381b"
PURPLE, SKY = "#b5659a", "#56b4e9"
_VARIABLES = {
    INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper", PLAIN: "plain", INDEX: "index", SQUASH: "squash",
    PUBLISHED: "published", ALERT: "alert", PURPLE: "purple", SKY: "sky",
}  # fmt: skip
#: Colours of series that are not lifts: QEMU versions, runs, kinds of reads.
CYCLE = (PLAIN, INDEX, SQUASH, PURPLE, SKY, ALERT)
MARKERS = ("o", "s", "^", "D", "v", "P")
LIFT_COLOURS = {"none": PLAIN, "index": INDEX, "squash": SQUASH}

#: Width of a figure that stands beside another one, and of one that has the page's width, inches.
HALF, FULL = 5.6, 11.4

_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "figure.facecolor": PAPER,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.12,
    "figure.constrained_layout.h_pad": 0.12,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "hatch.linewidth": 0.7,
    "svg.hashsalt": "chainlift",
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Picture:
    """A figure with what people read around it."""

    #: File name without its ending, and the anchor in the page.
    name: str
    title: str
    caption: str
    #: What the figure shows, for people who do not see it.
    alt: str
    figure: Figure
    #: Whether it needs the page's whole width.
    wide: bool = False
    #: What stands in the page instead, where a narrow screen should show one below the other.
    panels: tuple[Picture, ...] = ()


def require() -> None:
    """Check that the extra that draws is there; :raise MissingToolError: if it is not."""
    try:
        for name in ("jinja2", "matplotlib"):
            import_module(name)
    except ImportError as error:
        raise MissingToolError(
            f"drawing a report needs the Python package {error.name}",
            hint="pip install 'chainlift[report]', or Debian's package chainlift-study",
        ) from error


@contextmanager
def drawing_style() -> Iterator[None]:
    """Draw and save within the style."""
    from matplotlib import rc_context, rcdefaults

    with rc_context():
        rcdefaults()
        with rc_context(cast("Any", _RC)):
            yield


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, *, width_ratios: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """Return a figure of that many panels, row by row. No window, no global state: pyplot is not used.

    :param width: in inches.
    :param height: in inches.
    :param rows: of panels.
    :param columns: of panels.
    :param width_ratios: of the columns; None: all alike.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.subplots(rows, columns, squeeze=False, width_ratios=width_ratios)
    return figure, list(axes.flat)


def png(picture: Picture) -> bytes:
    """Return the figure as a PNG file, twice the resolution of a page."""
    stream = io.BytesIO()
    picture.figure.savefig(stream, format="png", dpi=160, metadata={"Software": None})
    return stream.getvalue()


def svg_file(picture: Picture) -> str:
    """Return the figure as an SVG file that looks the same everywhere."""
    return _svg(picture, "path")


def svg_inline(picture: Picture) -> str:
    """Return the figure as an ``<svg>`` element for the page: text as text, colours as the page's variables.

    A figure of several panels becomes one element a panel.
    """
    if picture.panels:
        least = f"{min(panel.figure.get_figwidth() for panel in picture.panels) * 4.7:.0f}rem"
        inside = "".join(svg_inline(panel) for panel in picture.panels)
        return f'<div class="panels" style="--panel: {least}">{inside}</div>'
    text = _svg(picture, "none")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    for colour, name in _VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    # The page's own fonts; and identifiers that stay unique when several figures share the page.
    text = re.sub(r"font: ([^;\"]*?)([\d.]+px) [^;\"]+", r"font-size: \2; \1", text)
    text = re.sub(r"font-family: [^;\"]+;?", "", text)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{picture.name}-", text)
    head = f'<svg role="img" aria-labelledby="{picture.name}-title {picture.name}-alt"'
    named = f'<title id="{picture.name}-title">{_escape(picture.title)}</title>'
    named += f'<desc id="{picture.name}-alt">{_escape(picture.alt)}</desc>'
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    end = text.index(">")
    return head + text[len("<svg") : end + 1] + named + text[end + 1 :]


def _svg(picture: Picture, font_type: str) -> str:
    from matplotlib import rc_context

    stream = io.StringIO()
    metadata = {"Date": None, "Creator": "chainlift", "Title": picture.title, "Description": picture.alt}
    with rc_context({"svg.fonttype": font_type}):
        picture.figure.savefig(stream, format="svg", metadata=metadata)
    return stream.getvalue()


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
