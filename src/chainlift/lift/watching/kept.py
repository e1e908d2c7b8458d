"""What a watch keeps in its state directory: a file of JSON with a schema, or none yet."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

from chainlift.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_T = TypeVar("_T")


def read_kept(path: Path, schema: int, take: Callable[[Any], _T], *, what: str) -> _T | None:
    """Return what a file says; None where it is not there.

    :param take: makes of its data what is returned.
    :param what: the file is, for the error.
    :raise ImageError: if it is not ours.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
        if data["schema"] != schema:
            raise ImageError(f"is no {what}: its schema is {data['schema']!r}", path=path, hint="move it away")
        return take(data)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ImageError(f"is no {what}: {error}", path=path, hint="move it away") from error
