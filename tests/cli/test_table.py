import pytest

from chainlift.cli.table import print_table

ROWS = [["a plain chain of the first run", "300", "2.4 ms", "165x"], ["\x1b[31m[bold]x[/bold]", "1", "9.0 µs", "1.00x"]]


def printed(capsys, monkeypatch, columns):
    if columns:
        monkeypatch.setenv("COLUMNS", str(columns))
    else:
        monkeypatch.delenv("COLUMNS", raising=False)
    print_table("Host reads", ["Of", "Length", "Median", "Ratio"], ROWS, numeric={1, 2, 3}, note="A note.")
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_a_table_keeps_to_the_width_and_its_figures_whole(capsys, monkeypatch, columns):
    text = printed(capsys, monkeypatch, columns)
    assert max(map(len, text.splitlines())) <= columns
    for figure in ("2.4 ms", "9.0 µs", "165x"):
        assert figure in text


def test_in_a_pipe_no_line_is_broken(capsys, monkeypatch):
    lines = printed(capsys, monkeypatch, 0).splitlines()
    assert [line for line in lines if line.startswith("a plain chain of the first run  ")]


def test_neither_control_characters_nor_markup_in_a_cell_are_obeyed(capsys, monkeypatch):
    text = printed(capsys, monkeypatch, 80)
    assert "\x1b" not in text
    assert "\\x1b[31m[bold]x[/bold]" in text
