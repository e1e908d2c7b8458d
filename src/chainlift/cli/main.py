"""The command itself: which verbs there are, and how an error becomes a line and an exit status.

Exit status: 0 done, 1 the answer is no, 2 bad use or bad input, 3 an operation failed and everything is as before, 4 it
is not known what an operation that failed has left (the line says what is), 130 interrupted.
"""

from __future__ import annotations

import gc
import os
import sys
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

import click

from chainlift._version import __version__
from chainlift.cli.streams import STDOUT, give_up, prepare_streams
from chainlift.errors import ChainliftError, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# numpy's linear algebra, which nothing here uses, would start a thread for every core when it is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

#: Verb -> (module:attribute of its command, its line in ``--help``). A verb's module is imported when it is used.
VERBS: dict[str, tuple[str, str]] = {
    "study": ("chainlift.cli.study:command", "Build a chain, measure it at several lengths, draw the report."),
    "plan": ("chainlift.cli.plan:command", "What each lift would cost and gain for a chain."),
    "index": ("chainlift.cli.index:command", "Make a chain read like one image, without copying it."),
    "squash": ("chainlift.cli.squash:command", "Make one layer of the middle of a chain."),
    "flatten": ("chainlift.cli.flatten:command", "Write a whole chain as one image."),
    "restore": ("chainlift.cli.restore:command", "Undo a lift."),
    "stream": ("chainlift.cli.stream:command", "QEMU's block-stream, made fast by an index."),
    "watch": ("chainlift.cli.watch:command", "Keep the chains of running VMs short."),
    "verify": ("chainlift.cli.verify:command", "Is a lift still true?"),
    "profile": ("chainlift.cli.profile:command", "Where QEMU's time goes on an image, as flame graphs."),
    "inspect": ("chainlift.cli.inspect:command", "Who backs whom, what is dead weight, how far reads fall."),
    "map": ("chainlift.cli.map:command", "What qemu-img map says of a chain, many times faster."),
    "qemu": ("chainlift.cli.qemu:command", "QEMUs of other releases: unpack, list, remove."),
}


#: Verbs that have changed something by the time they print what they did.
_CHANGING = frozenset({"study", "index", "squash", "flatten", "restore", "stream", "watch", "qemu"})


class _Broken(Exception):  # noqa: N818 - not an error if it is that of standard output
    """A pipe or a socket whose other end is gone; click would end with exit status 1 by itself."""


class _Verbs(click.Group):
    """A group that knows its commands by name and imports only the one that is used."""

    def make_context(self, *words: object, **more: object) -> click.Context:
        with _past_click():
            return super().make_context(*words, **more)  # type: ignore[arg-type]

    def invoke(self, ctx: click.Context) -> object:
        with _past_click():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in VERBS:
            return None
        module, _, attribute = VERBS[cmd_name][0].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        if VERBS:
            with formatter.section("Commands"):
                formatter.write_dl([(name, line) for name, (_, line) in VERBS.items()])


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="chainlift")
def cli() -> None:
    """Measure what a long qcow2 snapshot chain costs, explain why, and lift that cost off."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command and exit; the one place where an error becomes an exit status."""
    # There is not much garbage in cycles: looking for it while modules are imported takes a tenth of that time.
    gc.set_threshold(50_000)
    prepare_streams()
    words = sys.argv[1:] if arguments is None else arguments
    try:
        status = cli.main(args=arguments, prog_name="chainlift", standalone_mode=False)
        sys.stdout.flush()
    except (click.exceptions.Abort, KeyboardInterrupt):
        if sys.stderr.isatty():
            click.echo(err=True)  # the terminal shows ^C
        _fail("interrupted", 130)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "chainlift"
        _fail(f"{error.format_message().rstrip('.')}; see '{command} --help'", 2)
    except ChainliftError as error:
        _fail(str(error), error.exit_status)
    except _Broken as error:
        _fail_by_system(error.__cause__, words)
    except OSError as error:
        _fail_by_system(error, words)
    except MemoryError:
        _fail("not enough memory", 3)
    except RecursionError:
        _fail("what was given is nested too deeply", 2)
    sys.exit(status if isinstance(status, int) else 0)


@contextmanager
def _past_click() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise _Broken from error
    except KeyboardInterrupt as error:
        raise click.exceptions.Abort from error  # click would print an empty line, too


def _fail_by_system(error: BaseException | None, words: Sequence[str]) -> NoReturn:
    """End with what the operating system said; all that nobody below had more to say about comes here."""
    assert isinstance(error, OSError)
    text = error.strerror or str(error) or type(error).__name__
    if error.filename == STDOUT:
        give_up(sys.stdout)
        if isinstance(error, BrokenPipeError):
            # The reader of our standard output went away (`| head`): not an error, and nothing more can be said there.
            sys.exit(0)
        if not _CHANGING.isdisjoint(words[:1]) and {"-h", "--help"}.isdisjoint(words):
            _fail(f"{STDOUT}: {text}; what was asked for may be done: look with chainlift inspect", 4)
    names = [
        os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes | os.PathLike)
    ]
    where = " -> ".join(names)
    _fail(f"{where}: {text}" if where else text, 3)


def _fail(line: str, status: int) -> NoReturn:
    click.echo(f"chainlift: {one_line(line)}", err=True)
    sys.exit(status)
