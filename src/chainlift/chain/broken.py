"""Chains that end too early: what is intact of one, what is missing, who names it, and what would mend it."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chainlift.chain.chain import Chain
from chainlift.chain.linear import ExtentsFile
from chainlift.chain.names import plain_name
from chainlift.chain.opening import open_intact, probe_format
from chainlift.chain.policy import ChainPolicy
from chainlift.chain.summarize import summarize
from chainlift.errors import ChainliftError, ImageError
from chainlift.qcow2.file import ImageFile
from chainlift.qcow2.image import read_header

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chainlift.chain.layer import Layer
    from chainlift.chain.names import Reference
    from chainlift.chain.opening import Cut
    from chainlift.chain.summary import ChainSummary

#: Files of a lift, as chainlift names them.
_LIFT: Final = re.compile(r"(?:^|/)(?P<image>[^/]+)\.lift/(?:index-\d+\.(?:vmdk|table)|squash-\d+\.qcow2)")
_DEFAULT_POLICY: Final = ChainPolicy()


@dataclass(frozen=True)
class Broken:
    """Where a chain ends too early."""

    #: Of the first layer that cannot be read; what is above it is intact.
    depth: int
    path: str
    what: str
    #: The layer above, whose header (or the name that it was opened by) names it.
    named_by: str
    backing_name: str | None
    backing_format: str | None
    #: A file of the same name that lies beside, or beside another layer; None where there is none that fits.
    found: str | None
    #: A command for a shell that mends the chain; None where none is known.
    mend: str | None
    #: What to do, in a phrase.
    advice: str


def inspect_chain(
    path: str,
    policy: ChainPolicy = _DEFAULT_POLICY,
    *,
    format: str | None = None,  # noqa: A002
) -> tuple[ChainSummary, tuple[Broken, ChainliftError] | None]:
    """Summarize as much as can be read of a chain; parameters as :func:`~chainlift.chain.opening.open_chain`.

    :return: the summary, of the layers above the first that cannot be read; and that one, with the error that reading
        the whole chain would have ended with.
    :raise ImageError: if the image itself cannot be read.
    :raise PolicyError: if it may not be read.
    """
    chain, cut = open_intact(path, policy, format=format)
    with chain:
        return summarize_intact(chain, cut, policy)


def summarize_intact(
    chain: Chain, cut: Cut | None, policy: ChainPolicy = _DEFAULT_POLICY
) -> tuple[ChainSummary, tuple[Broken, ChainliftError] | None]:
    """Summarize what :func:`~chainlift.chain.opening.open_intact` has opened; see :func:`inspect_chain`.

    :raise ImageError: if the image itself cannot be read.
    """
    broken = None if cut is None else (_at_end(chain, cut.reference, cut.error, policy), cut.error)
    layers = chain.layers
    while True:
        try:
            return summarize(Chain(layers)), broken
        except ImageError as error:
            depth = _depth_of(layers, error)
            if not depth:
                raise
            broken = _inside(chain, depth, error), error
            layers = layers[:depth]


def _depth_of(layers: tuple[Layer, ...], error: ImageError) -> int | None:
    """Return the layer that an error is about: one of its files has that name."""
    for depth, layer in enumerate(layers):
        files = {layer.path, layer.data_file.path}
        if isinstance(layer.file, ExtentsFile):
            directory = os.path.dirname(layer.path)  # noqa: PTH120 - any bytes
            files |= {os.path.join(directory, extent.name) for extent in layer.file.extents}  # noqa: PTH118
        if error.path in files:
            return depth
    return None


def _inside(chain: Chain, depth: int, error: ImageError) -> Broken:
    """Describe a layer that was opened and whose tables cannot be read."""
    layer, above = chain.layers[depth], chain.layers[depth - 1]
    name = error.path or layer.path
    if layer.extents:
        advice = f"it is read through the index {layer.path}: bring it back, or see chainlift restore"
    else:
        advice = f"bring it back from a backup; qemu-img check {_quoted(layer.path)} says what else is wrong"
    return Broken(depth, name, error.what, above.path, above.backing_name, above.backing_format, None, None, advice)


def _at_end(chain: Chain, reference: Reference | None, error: ChainliftError, policy: ChainPolicy) -> Broken:
    """Describe what the last layer names and could not be opened."""
    above = chain.layers[-1]
    path = above.backing_name if reference is None else reference.path
    found = mend = None
    by_header = above.reference.follows_header
    is_there = reference is not None and os.path.exists(reference.path)  # noqa: PTH110 - any bytes
    if lost := _LIFT.search(error.path or path or "") or _LIFT.search(path or ""):
        advice = (
            f"it belongs to the lift of {lost['image']}, whose files are gone or were moved: "
            f"chainlift restore {_quoted(above.path)} goes back to the layers, if it finds what that needs"
        )
    elif reference is not None and not is_there:
        found, file_format = _beside(chain, reference, policy)
        look_for = f"a {reference.format or 'qcow2 or raw'} file {os.path.basename(reference.path)!r}"  # noqa: PTH119
        if found is not None and by_header:
            mend, advice = _rebase(above, found, file_format), "a file of that name lies here; if it is the one"
        elif found is not None:
            advice = f"{found} has that name: give it in the json: name"
        elif by_header:
            command = _rebase(above, "FOUND", reference.format or "FORMAT")
            advice = f"look for {look_for} (moved, renamed, not mounted?), then: {command}"
        else:
            advice = f"look for {look_for}, and give it in the json: name"
    elif reference is not None:
        advice = "it is there: see why it cannot be read, or bring it back from a backup"
    else:
        advice = "only chains of local files can be read here"
    return Broken(
        len(chain.layers), error.path or path or "", error.what, above.path, above.backing_name, above.backing_format,
        found, mend, advice,
    )  # fmt: skip


def _beside(chain: Chain, reference: Reference, policy: ChainPolicy) -> tuple[str | None, str]:
    """Look for a missing file where layers of the chain lie, also below the directory that it was in.

    :return: its path, and the format that a header should say.
    """
    taken = {layer.file.identity for layer in chain.layers}
    parts = reference.path.rsplit("/", 2)
    names = [parts[-1], *(["/".join(parts[-2:])] if len(parts) > 1 else [])]
    for directory in _directories(chain):
        for name in names:
            path = os.path.join(directory, name)  # noqa: PTH118 - any bytes
            file_format = _fits(path, reference, taken, policy)
            if file_format is not None:
                return path, file_format
    return None, ""


def _directories(chain: Chain) -> Iterator[str]:
    """Yield where layers lie, nearest to the missing one first, also behind symbolic links."""
    seen = set()
    for layer in reversed(chain.layers):
        for path in (layer.path, os.path.realpath(layer.path)):
            directory = os.path.dirname(path)  # noqa: PTH120 - any bytes
            if directory not in seen:
                seen.add(directory)
                yield directory


def _fits(path: str, reference: Reference, taken: set[tuple[int, ...]], policy: ChainPolicy) -> str | None:
    """Return the format of a file that may be the missing one, None if there is none."""
    try:
        file = ImageFile(path, check=policy.check_place if policy.within else None)
    except ChainliftError:
        return None
    try:
        found = probe_format(file.pread(0, 4096))
        if file.identity in taken or (reference.format == "qcow2" and found != "qcow2"):
            return None
        if found == "qcow2" and reference.format != "raw":
            read_header(file)
    except ChainliftError:
        return None
    finally:
        file.close()
    return reference.format or found


def _rebase(layer: Layer, found: str, file_format: str) -> str:
    """Return the command that makes a layer name another backing file."""
    directory, name = os.path.split(found)
    if directory and directory != os.path.dirname(layer.path):  # noqa: PTH120 - any bytes
        name = os.path.abspath(found)  # noqa: PTH100 - links in it stay
    name = name if found == "FOUND" else plain_name(name)
    return f"qemu-img rebase -u -F {file_format} -b {shlex.quote(name)} {_quoted(layer.path)}"


def _quoted(path: str) -> str:
    return shlex.quote(plain_name(path))
