"""A survey from its beginning to its end: where it is kept, what is known already, and who does it."""

from __future__ import annotations

from contextlib import ExitStack, closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from chainlift._version import __version__
from chainlift.errors import OperationError
from chainlift.results.survey.records import Head
from chainlift.results.survey.store import Survey, SurveyWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

    from chainlift.results.survey.records import Chain, End, Place, Record, Source, Trouble
    from chainlift.survey.settings import Settings


def run_survey(
    sources: Sequence[Source],
    settings: Settings,
    look: Callable[[Survey], Generator[Chain | Trouble | Place | End]],
    *,
    file: Path | None = None,
    tell: Callable[[Record], None] | None = None,
) -> Survey:
    """Run a survey and keep what it finds.

    :param sources: where it looks.
    :param look: does it; gets what is known already, of an interrupted survey, and yields all that is new.
    :param file: where the lines are kept; one that an interrupted survey has left is gone on with.
    :param tell: called with each line.
    :raise InputError: if the file holds something else.
    :raise OperationError: if the file cannot be written any more; what is in it is gone on with the next time.
    """
    head = head_of(sources, settings)
    survey = Survey(head)
    with ExitStack() as stack:
        writer = None if file is None else stack.enter_context(SurveyWriter(file, head))
        if writer is not None and writer.found is not None:
            survey.by_key, survey.places = writer.found.by_key, writer.found.places
        if tell is not None:
            tell(head)
        for record in stack.enter_context(closing(look(survey))):
            survey.add(record)
            if writer is not None:
                try:
                    writer.write(record)
                except OSError as error:
                    what = f"cannot be written: {error.strerror}"
                    hint = "make room; the same command then goes on where it ended"
                    raise OperationError(what, path=file, hint=hint) from error
            if tell is not None:
                tell(record)
    return survey


def head_of(sources: Sequence[Source], settings: Settings) -> Head:
    """Return the first line of a survey that begins now."""
    parameters = settings.parameters
    return Head(
        chainlift=__version__,
        started_at=datetime.now(UTC),
        sources=tuple(sources),
        policy="" if settings.policy is None else str(settings.policy),
        qemu="" if parameters is None else parameters.qemu,
        model="" if parameters is None else parameters.origin,
    )
