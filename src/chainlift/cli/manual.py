"""Man pages and completion for shells, made from the commands themselves: no verb or option is written down here.

``python -m chainlift.cli.manual DIRECTORY`` writes what a package installs below its prefix. The build of the wheel and
that of the Debian package call it; it needs no more than click.

Completion is click's own: a script for each shell, which asks the command.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import get_completion_class

from chainlift import errors
from chainlift._version import __version__
from chainlift.cli.main import VERBS, cli

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PROGRAM = "chainlift"
#: Shell -> where it looks for the completion of a command, below a prefix.
COMPLETIONS = {
    "bash": Path("share/bash-completion/completions/chainlift"),
    "zsh": Path("share/zsh/site-functions/_chainlift"),
    "fish": Path("share/fish/vendor_completions.d/chainlift.fish"),
}
MAN_PAGES = Path("share/man/man1")

#: What roff takes for something else than itself (groff_char(7)).
_ESCAPES = str.maketrans({"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"})
_CODE = re.compile(r"`([^`]+)`")
_MENTIONED = re.compile(r"chainlift ([a-z]+)")


def write_all(prefix: Path) -> list[Path]:
    """Write the man pages and the completions.

    :param prefix: the directory below which ``share`` is made.
    :return: the files, relative to it.
    :raise OSError: if one cannot be written.
    """
    files = {MAN_PAGES / name: text for name, text in man_pages().items()}
    files |= {path: completion(shell) for shell, path in COMPLETIONS.items()}
    for path, text in files.items():
        target = prefix / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return list(files)


def completion(shell: str) -> str:
    """Return what a shell reads to complete the command.

    :param shell: ``bash``, ``zsh`` or ``fish``.
    """
    kind = get_completion_class(shell)
    assert kind is not None
    made = kind(cli, {}, PROGRAM, f"_{PROGRAM.upper()}_COMPLETE")
    # Not source(): that of bash wants to run the bash that is there.
    text = made.source_template % made.source_vars()
    if shell == "zsh" and "loadautofunc" not in text:
        # click before 8.1.4: zsh reads the file at the first TAB, and that one was for nothing.
        name = made.func_name
        text = text.replace(
            f"compdef {name} {PROGRAM};",
            f'if [[ $zsh_eval_context[-1] == loadautofunc ]]; then {name} "$@"; else compdef {name} {PROGRAM}; fi',
        )
    return text


def man_pages() -> dict[str, str]:
    """Return the man page of the command and of each verb, in man(7), by their file names."""
    with cli.make_context(PROGRAM, [], resilient_parsing=True) as root:
        pages = {f"{PROGRAM}.1": _page(root, _sentence(cli.help or ""), ["qemu-img", "qemu-storage-daemon"])}
        for verb, (_, line) in VERBS.items():
            command = cli.get_command(root, verb)
            assert command is not None
            context = click.Context(command, info_name=verb, parent=root, resilient_parsing=True)
            mentioned = set(_MENTIONED.findall(command.help or "")) & VERBS.keys() - {verb}
            others = [PROGRAM, *sorted(f"{PROGRAM}-{other}" for other in mentioned)]
            pages[f"{PROGRAM}-{verb}.1"] = _page(context, line, others)
    return pages


def _page(context: click.Context, line: str, others: Sequence[str]) -> str:
    """Return one page.

    :param line: what the command is for.
    :param others: the pages to read as well.
    """
    name = context.command_path.replace(" ", "-")
    day = time.strftime("%Y-%m-%d", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))))
    lines = [
        f'.TH {name.upper().translate(_ESCAPES)} 1 {day} "{PROGRAM} {__version__}" "User Commands"',
        ".SH NAME",
        rf"{_text(name)} \- {_text(_phrase(line))}",
        ".SH SYNOPSIS",
        _synopsis(context),
        ".SH DESCRIPTION",
        *_paragraphs(context.command.help or ""),
        *_options(context, ".SH OPTIONS"),
        *_commands(context),
        ".SH EXIT STATUS",
        *_exit_statuses(),
        ".SH SEE ALSO",
        ",\n".join(f".BR {_text(page)} (1)" for page in others),
    ]
    return "\n".join(lines) + "\n"


def _commands(context: click.Context) -> Iterator[str]:
    """Give what follows a group's name: verbs have pages of their own, what follows a verb is told on its page."""
    group = context.command
    if not isinstance(group, click.Group):
        return
    yield ".SH COMMANDS"
    if group is cli:
        for verb, (_, line) in VERBS.items():
            yield from (".TP", rf".BR {PROGRAM}\-{verb} (1)", _text(line))
        return
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        with click.Context(command, info_name=name, parent=context, resilient_parsing=True) as below:
            yield from (f".SS {_text(name)}", _synopsis(below), ".PP", *_paragraphs(command.help or ""))
            yield from _options(below, "")


def _options(context: click.Context, heading: str) -> Iterator[str]:
    records = [
        record
        for parameter in context.command.get_params(context)
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context)) is not None
    ]
    if records and heading:
        yield heading
    for names, text in records:
        # "-f, --format [qcow2|raw]": what it takes follows the last of its names.
        match = re.fullmatch(r"(-[^\s,]+(?:, -[^\s,]+)*)(?: (.*))?", names)
        assert match is not None, names
        bold = ", ".join(rf"\fB{_text(name)}\fR" for name in match[1].split(", "))
        yield from (".TP", f"{bold} {_text(match[2])}" if match[2] else bold, _text(text or "No more is said of it."))


def _exit_statuses() -> Iterator[str]:
    found: dict[int, str] = {0: "Done."}
    for kind in vars(errors).values():
        if not isinstance(kind, type) or not issubclass(kind, errors.ChainliftError) or kind is errors.ChainliftError:
            continue
        if "exit_status" in vars(kind):
            found[kind.exit_status] = _sentence(kind.__doc__ or "")
    for status, text in sorted(found.items()):
        yield from (".TP", rf"\fB{status}\fR", _text(text))
    yield from (".TP", r"\fB129, 130, 143\fR", "SIGHUP, SIGINT or SIGTERM came, and what had been begun is undone.")


def _synopsis(context: click.Context) -> str:
    pieces = " ".join(context.command.collect_usage_pieces(context))
    return rf"\fB{_text(context.command_path)}\fR {_text(pieces)}"


def _paragraphs(text: str) -> Iterator[str]:
    """Give a help text's paragraphs as click has them: an empty line parts two, lines behind a backspace are kept."""
    for number, paragraph in enumerate(re.split(r"\n\s*\n", _cleaned(text))):
        if number:
            yield ".PP"
        if paragraph.startswith("\b"):
            yield from (".nf", *(_text(line) for line in paragraph.splitlines()[1:]), ".fi")
        else:
            yield _text(" ".join(paragraph.split()))


def _cleaned(text: str) -> str:
    return inspect.cleandoc(text).partition("\f")[0]


def _sentence(text: str) -> str:
    """Return the first sentence of a docstring."""
    paragraph = " ".join(_cleaned(text).split("\n\n")[0].split())
    return paragraph.partition(". ")[0].rstrip(".") + "."


def _phrase(line: str) -> str:
    """Return a sentence as the NAME of a page has it: small, without its full stop."""
    word = line.split(maxsplit=1)[0]
    return (line if word != word.capitalize() else line[0].lower() + line[1:]).rstrip(".")


def _text(text: str) -> str:
    """Return a line of roff that is this text; what is typed, which stands between grave accents, in bold."""
    parts = _CODE.split(text)
    escaped = [part.translate(_ESCAPES) for part in parts]
    joined = "".join(rf"\fB{part}\fR" if number % 2 else part for number, part in enumerate(escaped))
    # A full stop at the beginning of a line would make it a request; \(aq already is no apostrophe.
    return rf"\&{joined}" if joined.startswith(".") else joined


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
