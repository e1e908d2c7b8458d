"""The switch of a running disk: pointers anywhere in its chain are changed, in the headers and in QEMU's graph.

A change of the active layer's own pointer is one pivot. For a change further down, the header of that image is changed
first, by QEMU, on the node that has it open; then a new chain is opened as the headers say from the active layer's
backing file down, and the active node pivots to it. See :mod:`chainlift.lift.live.pivot`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from chainlift.chain.names import parse_name
from chainlift.errors import ChainliftError, ImageError, InputError
from chainlift.host.filesystem import is_same_file
from chainlift.lift.disk import Standing
from chainlift.lift.live.exchange import Rename
from chainlift.lift.live.layers import layers_under, leads_to, refer, standing
from chainlift.lift.live.naming import qemu_name
from chainlift.lift.record.pointer import read_pointer
from chainlift.lift.target import Target, layer_format, open_options

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from chainlift.lift.disk import Change
    from chainlift.lift.live.pivot import Pivot, State
    from chainlift.lift.live.session import LiveSession
    from chainlift.lift.record.manifest import Pointer

#: A chain that is longer is opened layer by layer: 300 in one command stop the main loop for 0.2 to 0.6 s.
_FEW_LAYERS: Final = 32


@dataclass(frozen=True)
class SwitchPlan:
    """What has to be done for some changes, all of it looked up and nothing done yet."""

    target: Target
    renames: tuple[Rename, ...]
    #: Whether the active layer's own header is changed.
    persist: bool
    #: Whether the target's layers are opened one at a time.
    one_by_one: bool = False


def switch_live(
    session: LiveSession,
    changes: Sequence[Change],
    *,
    persist: bool = True,
    after: Callable[[State], None] | None = None,
) -> Pivot:
    """Switch pointers of a running disk's chain: all of them or none.

    The caller has refused what must not be switched, and holds no lock on an image whose pointer changes.

    :param persist: also write the active layer's own change into its header; those below are always written.
    :param after: called with each state that was reached; a test's place to stop.
    :return: the pivot that was made: what it took, and what it has left.
    :raise InputError: if a change does not fit to the chain that QEMU has; nothing was touched.
    :raise QemuError: if a step failed; everything is as before.
    :raise UnknownStateError: if it is not known what a step that failed has left.
    """
    plan = plan_switch(session, changes, persist=persist)
    pivot = session.pivot(after=after)
    pivot.run(plan.target, persist=plan.persist, renames=plan.renames, name_layers=plan.one_by_one)
    return pivot


def plan_switch(session: LiveSession, changes: Sequence[Change], *, persist: bool = True) -> SwitchPlan:
    """Return what has to be done.

    :param session: of the disk.
    :param changes: what is to be switched, anywhere in its chain.
    :param persist: write the active layer's new name into its header, too.
    :raise InputError: if a change does not fit to the chain that QEMU has.
    """
    found = standing(session.graph, session.disk.node, session.image)
    nodes = session.graph.backing_chain(session.disk.node)
    depths = _depths(session, found, changes)
    if not depths:
        raise InputError("there is nothing to switch", path=session.image)
    wanted = _apply(found, depths)
    lowest = max(depths)
    headers = {depth: read_pointer(found[depth].image)[1] for depth in range(lowest + 1)}
    renames = []
    for depth in sorted(depths, reverse=True):
        change = depths[depth]
        _refuse_format(change)
        if depth and (now := headers[depth]) is not None and now.name != change.new.name:
            renames.append(Rename(nodes[depth], found[depth].image, change.new.name))
    says = {depth: depth in depths or _says(wanted[depth], headers[depth]) for depth in range(1, lowest + 1)}
    options = _options(wanted, lowest, says)
    pointer = wanted[0].pointer
    assert pointer is not None
    name = (qemu_name(options[0]) if 0 in depths else None) or pointer.name
    target = Target(name, options[0], tuple(options[1:]))
    # A header that leads there already (of a lift that only QEMU knew) stays as it is, and QEMU knows it.
    persist = persist and 0 in depths and not _says(wanted[0], headers[0])
    plan = SwitchPlan(target, tuple(renames), persist, one_by_one=len(options) > 1)
    return _one_by_one(plan, session.image, pointer) if depths.keys() == {0} else plan


def _depths(session: LiveSession, found: Sequence[Standing], changes: Sequence[Change]) -> dict[int, Change]:
    """Return the depth in the chain of each change's owner: 0 is the active layer."""
    graph = session.graph
    nodes = graph.backing_chain(session.disk.node)
    depths: dict[int, Change] = {}
    for change in changes:
        places = [depth for depth, image in enumerate(found) if is_same_file(image.image, change.owner)]
        if not places:
            raise InputError("is not in the chain that QEMU has open", path=change.owner)
        depth = places[0]
        if depth in depths:
            raise InputError("is to be switched twice", path=change.owner)
        if depth + 1 == len(nodes):
            raise InputError("stands on nothing in the chain that QEMU has open", path=change.owner)
        below = nodes[depth + 1]
        file = Path(graph.protocol_file(below) or "")
        if not any(
            leads_to(change.owner, side, file, is_index=graph.is_index(below)) for side in (change.old, change.new)
        ):
            raise InputError(f"stands on {file} in QEMU, not on {change.old.name}", path=change.owner)
        depths[depth] = change
    lowest = max(depths, default=0)
    for depth in range(lowest):
        pointer = found[depth].pointer
        if depth not in depths and pointer is not None and not refer(found[depth].image, pointer).follows_header:
            raise InputError(
                "names what is below its backing file as well, so that nothing below can be switched",
                path=found[depth].image,
                hint="switch that json: name as well",
            )
    return depths


def _apply(found: Sequence[Standing], depths: Mapping[int, Change]) -> list[Standing]:
    return [
        Standing(image.image, depths[depth].new if depth in depths else image.pointer)
        for depth, image in enumerate(found)
    ]


def _says(wanted: Standing, header: Pointer | None) -> bool:
    """Whether a header leads to where its image is to stand."""
    if wanted.pointer is None or header is None:
        return wanted.pointer is header
    try:
        one, other = refer(wanted.image, wanted.pointer), refer(wanted.image, header)
    except ChainliftError:
        return False
    return one == other


def _options(wanted: Sequence[Standing], lowest: int, says: Mapping[int, bool]) -> list[dict[str, Any]]:
    """Return the options of the node that the active layer is to stand on, and of those below that must be told.

    QEMU follows the headers, but down to the last image whose header does not say what it stands on each is told by
    itself: options inside those of the node above are mixed with the name in its header (``bdrv_open_backing_file()``).
    """
    told = max((depth for depth in range(1, lowest + 1) if not says[depth]), default=0)
    pointers = [(image.image, image.pointer) for image in wanted[: told + 1]]
    return [open_options(refer(image, pointer)) for image, pointer in pointers if pointer is not None]


def _refuse_format(change: Change) -> None:
    """Refuse what is not qcow2.

    ``change-backing-file`` always writes the overlay's own format down as the backing file's (blockdev.c,
    ``qmp_change_backing_file``), and a raw file would be read as qcow2 from then on.
    """
    reference = refer(change.owner, change.new)
    try:
        file_format = layer_format(reference)
    except OSError as error:
        raise ImageError(f"cannot be opened: {error.strerror}", path=reference.path) from error
    if file_format != "qcow2":
        raise ImageError(
            f"the backing file to switch to is {file_format}",
            path=change.owner,
            hint="a running QEMU can only be switched to qcow2; do it with the image at rest",
        )


def _one_by_one(plan: SwitchPlan, image: Path, pointer: Pointer) -> SwitchPlan:
    """Open a long chain one layer at a time where its names allow that."""
    if parse_name(pointer.name, named_in=str(image)).is_descriptor:
        return plan
    layers = layers_under(image, pointer)
    if len(layers) <= _FEW_LAYERS or not all(layer.is_named_so for layer in layers[1:]):
        return plan
    target = Target(plan.target.pointer, layers[0].options, tuple(layer.options for layer in layers[1:]))
    return SwitchPlan(target, plan.renames, plan.persist, one_by_one=True)
