import itertools

from chainlift.report.draw import Bar, Line, bar_panel, byte_ticks, log_panel
from chainlift.report.style import FULL, drawing_style, new_figure
from chainlift.units import format_bytes, format_seconds


def panel(draw):
    with drawing_style():
        figure, (axes,) = new_figure(FULL, 4)
        draw(axes)
        figure.canvas.draw()
    return axes


def boxes(axes):
    return [text.get_window_extent() for text in axes.texts if text.get_text()]


def test_names_at_the_ends_of_lines_do_not_touch():
    lines = [
        Line(f"QEMU {n}\nlength^2.0\ncrashed at 500", {1: (1e-5,), 300: (1e-2 * (1 + n / 50),)}, "#000")
        for n in range(5)
    ]
    found = sorted(boxes(panel(lambda axes: log_panel(axes, lines, format_seconds))), key=lambda box: box.y0)
    assert len(found) == 5
    assert all(low.y1 <= high.y0 + 1 for low, high in itertools.pairwise(found))


def test_lengths_under_an_axis_do_not_touch():
    line = Line("x", {n: (float(n),) for n in (1, 10, 20, 50, 100, 200, 300, 500, 900, 1000)}, "#000")
    axes = panel(lambda axes: log_panel(axes, [line], format_seconds))
    labels = sorted((t.get_window_extent() for t in axes.get_xticklabels() if t.get_text()), key=lambda box: box.x0)
    assert len(labels) >= 5
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(labels))


def test_a_logarithmic_axis_has_more_than_one_tick_however_little_it_spans():
    for low, high in ((1.1e-3, 1.3e-3), (2.0, 7.0), (0.5, 30.0), (1e-6, 1e-2)):
        axes = panel(
            lambda axes, a=low, b=high: log_panel(axes, [Line("x", {1: (a,), 300: (b,)}, "#000")], format_seconds)
        )
        bottom, top = axes.get_ylim()
        assert sum(bottom <= tick <= top for tick in axes.get_yticks()) >= 2, (low, high)


def test_every_sample_of_a_bar_is_a_dot():
    axes = panel(lambda axes: bar_panel(axes, [Bar("300", (1.0, 1.0, 2.0), 1.0, "#000")], format_seconds))
    dots = [(float(x), float(y)) for line in axes.lines if line.get_marker() == "o" for x, y in line.get_xydata()]
    assert sorted(y for _, y in dots) == [1.0, 1.0, 2.0]
    assert len({x for x, _ in dots}) == 3, "equal samples stand beside each other"


def test_a_crash_stands_in_the_place_of_its_bar():
    axes = panel(lambda axes: bar_panel(axes, [Bar("1", (), None, "#000", failure="crashed")], format_seconds))
    assert "crashed" in [text.get_text() for text in axes.texts]


def test_ticks_of_bytes_are_round_in_binary():
    assert [format_bytes(tick) for tick in byte_ticks(7.7 * 2**20, 4)] == ["0 B", "2.00 MiB", "4.00 MiB", "6.00 MiB"]
    assert byte_ticks(900, 4) == [0, 500]
