"""The command itself: which verbs there are, and how an error becomes a line and an exit status.

Exit status: 0 done, 1 the answer is no, 2 bad use or bad input, 3 an operation failed and everything is as before, 4 it
is not known what an operation that failed has left (the line says what is); 130, 143 or 129: SIGINT (Ctrl-C), SIGTERM
or SIGHUP came, and what had been begun is undone.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

import click

from chainlift._version import __version__
from chainlift.cli.group import Group
from chainlift.cli.streams import STDOUT, give_up, prepare_streams
from chainlift.errors import ChainliftError, OperationError, one_line
from chainlift.host import interrupts

if TYPE_CHECKING:
    from collections.abc import Iterator

# numpy's linear algebra, which nothing here uses, would start a thread for every core when it is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

#: Verb -> (module:attribute of its command, its line in ``--help``). A verb's module is imported when it is used.
VERBS: dict[str, tuple[str, str]] = {
    "study": ("chainlift.cli.study:command", "Build a chain, measure it at several lengths, draw the report."),
    "plan": ("chainlift.cli.plan:command", "What each lift would cost and gain for a chain."),
    "index": ("chainlift.cli.index:command", "Make a chain read like one image, without copying it."),
    "squash": ("chainlift.cli.squash:command", "Make one layer of the middle of a chain."),
    "flatten": ("chainlift.cli.flatten:command", "Write a whole chain as one image."),
    "prune": ("chainlift.cli.prune:command", "Delete snapshots by rules: the last 24, one a day for a week."),
    "drop": ("chainlift.cli.drop:command", "Delete single snapshots of a chain."),
    "restore": ("chainlift.cli.restore:command", "Undo a lift."),
    "stream": ("chainlift.cli.stream:command", "QEMU's block-stream, made fast by an index."),
    "clean": ("chainlift.cli.clean:command", "What killed runs and unplugged disks have left in a running QEMU."),
    "watch": ("chainlift.cli.watch:command", "Keep the chains of running VMs short."),
    "verify": ("chainlift.cli.verify:command", "Is a lift still true?"),
    "profile": ("chainlift.cli.profile:command", "Where QEMU's time goes on an image, as flame graphs."),
    "inspect": ("chainlift.cli.inspect:command", "Who backs whom, what is dead weight, how far reads fall."),
    "tree": ("chainlift.cli.tree:command", "Every image below a directory: who stands on whom, what is broken."),
    "survey": ("chainlift.cli.survey:command", "Which of many disks suffer, how much, and what to do first."),
    "relink": ("chainlift.cli.relink:command", "Write names anew that lead nowhere after a move."),
    "diff": ("chainlift.cli.diff:command", "In what two snapshots of a chain differ."),
    "export": ("chainlift.cli.export:command", "Serve a snapshot for reading, as fast as one layer."),
    "map": ("chainlift.cli.map:command", "What qemu-img map says of a chain, many times faster."),
    "cost": ("chainlift.cli.cost:command", "What a chain costs QEMU, foreseen: CPU of a read, memory, opening."),
    "calibrate": ("chainlift.cli.calibrate:command", "Measure what `cost` foresees with, on this host."),
    "schema": ("chainlift.cli.schema:command", "What a verb's --json holds, as a JSON Schema."),
    "qemu": ("chainlift.cli.qemu:command", "QEMUs of other releases: unpack, list, remove."),
}


#: Verbs that have changed something by the time they print what they did.
_CHANGING = frozenset(
    {"study", "index", "squash", "flatten", "prune", "drop", "restore", "stream", "clean", "watch", "qemu", "relink"}
)


@dataclass
class _Call:
    """One run of the command, for what is said of it when it has ended."""

    words: list[str]
    #: The verb that was found among them.
    verb: str = ""


class _Broken(Exception):  # noqa: N818 - not an error if it is that of standard output
    """A pipe or a socket whose other end is gone; click would end with exit status 1 by itself."""


class _Verbs(Group):
    """A group that knows its commands by name and imports only the one that is used."""

    def make_context(self, *words: object, **more: object) -> click.Context:
        with _past_click():
            return super().make_context(*words, **more)  # type: ignore[arg-type]

    def invoke(self, ctx: click.Context) -> object:
        with _past_click():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        if isinstance(ctx.obj, _Call):
            ctx.obj.verb = cmd_name
        module, _, attribute = VERBS[cmd_name][0].partition(":")
        command = getattr(import_module(module), attribute)
        interrupts.between_steps()
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in VERBS.items()])


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="chainlift")
@click.option(
    "--log",
    "log_file",
    metavar="FILE",
    help="Add to FILE what is done: commands to QEMU and libvirt with their times, changes of files, refusals.",
)
@click.option(
    "-v", "--verbose", count=True, help="Say on standard error what is changed; twice: also what is only asked."
)
@click.pass_context
def cli(context: click.Context, log_file: str | None, verbose: int) -> None:
    """Measure what a long qcow2 snapshot chain costs, explain why, and lift that cost off."""
    if log_file is not None or verbose:
        from chainlift.cli import log

        log.begin(log_file, verbose, context.obj.words if isinstance(context.obj, _Call) else [])


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command and exit; the one place where an error becomes an exit status."""
    # There is not much garbage in cycles: looking for it while modules are imported takes a tenth of that time.
    gc.set_threshold(50_000)
    prepare_streams()
    call = _Call(list(sys.argv[1:] if arguments is None else arguments))
    try:
        status = cli.main(args=arguments, prog_name="chainlift", standalone_mode=False, obj=call)
        sys.stdout.flush()
        interrupts.between_steps()
        interrupts.end()
    except (click.exceptions.Abort, KeyboardInterrupt):
        _end_interrupted()
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "chainlift"
        _fail(f"{error.format_message().rstrip('.')}; see '{command} --help'", 2)
    except ChainliftError as error:
        if interrupts.pending() is not None and error.exit_status <= OperationError.exit_status:
            # Whoever sends a signal to us may have sent it to the programs that we ran as well, and one of them failed.
            _end_interrupted()
        _fail(str(error), error.exit_status)
    except _Broken as error:
        _fail_by_system(error.__cause__, call)
    except OSError as error:
        _fail_by_system(error, call)
    except MemoryError:
        _fail("not enough memory", 3)
    except RecursionError:
        _fail("what was given is nested too deeply", 2)
    _exit(status if isinstance(status, int) else 0)


@contextmanager
def _past_click() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise _Broken from error
    except KeyboardInterrupt as error:
        raise click.exceptions.Abort from error  # click would print an empty line, too


def _end_interrupted() -> NoReturn:
    """End as an interrupted process: everything is undone, or nothing was begun."""
    number = interrupts.end() or signal.SIGINT
    if number == signal.SIGINT and sys.stderr.isatty():
        click.echo(err=True)  # the terminal shows ^C
    _fail("interrupted", 128 + number)


def _fail_by_system(error: BaseException | None, call: _Call) -> NoReturn:
    """End with what the operating system said; all that nobody below had more to say about comes here."""
    assert isinstance(error, OSError)
    text = error.strerror or str(error) or type(error).__name__
    if error.filename == STDOUT:
        give_up(sys.stdout)
        if isinstance(error, BrokenPipeError):
            # The reader of our standard output went away (`| head`): not an error, and nothing more can be said there.
            sys.exit(0)
        if _is_changing(call):
            _fail(f"{STDOUT}: {text}; what was asked for may be done: look with chainlift inspect", 4)
    names = [
        os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes | os.PathLike)
    ]
    where = " -> ".join(names)
    _fail(f"{where}: {text}" if where else text, 3)


def _is_changing(call: _Call) -> bool:
    if call.verb == "diff":
        return any(word.startswith("--export") for word in call.words)
    return call.verb in _CHANGING and {"-h", "--help"}.isdisjoint(call.words)


def _fail(line: str, status: int) -> NoReturn:
    interrupts.end()
    click.echo(f"chainlift: {one_line(line)}", err=True)
    _exit(status, line)


def _exit(status: int, line: str = "") -> NoReturn:
    if "chainlift.cli.log" in sys.modules:  # else no log was asked for
        from chainlift.cli import log

        log.end(status, line)
    sys.exit(status)
