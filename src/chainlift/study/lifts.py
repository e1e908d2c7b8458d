"""Lifts as a dimension of a study: what is done to a run's active layer before it is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chainlift.errors import PlanError
from chainlift.lift.at_rest import DiskAtRest
from chainlift.lift.verbs import index, squash

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from chainlift.qemu.binary import Qemu
    from chainlift.results.model import Lift
    from chainlift.study.plan import Plan

#: A squash replaces what lies between the active layer and the base: there must be something.
_LEAST_LENGTH = {"squash": 2}
_REGISTRY: dict[str, Callable[[Path, Qemu], None]] = {"none": lambda _image, _qemu: None}


def register_lift(
    lift: Lift,
) -> Callable[[Callable[[Path, Qemu], None]], Callable[[Path, Qemu], None]]:
    """Register the function that lifts an image: it gets the throw-away active layer and the QEMU of the cell."""

    def keep(apply: Callable[[Path, Qemu], None]) -> Callable[[Path, Qemu], None]:
        _REGISTRY[lift] = apply
        return apply

    return keep


def check_lifts(plan: Plan) -> None:
    """Refuse a plan with a lift that is not there; :raise PlanError: naming it."""
    for lift in plan.lift:
        if lift not in _REGISTRY:
            raise PlanError(f"lift: there is no lift {lift!r}; there are {', '.join(_REGISTRY)}")


def makes_sense(lift: Lift, length: int) -> bool:
    """Whether a chain of this length can be lifted so."""
    return length >= _LEAST_LENGTH.get(lift, 1)


def apply_lift(lift: Lift, image: Path, qemu: Qemu) -> None:
    """Lift an image.

    :param lift: which; ``none`` does nothing.
    :param image: the active layer.
    :param qemu: whose tools compare and switch.
    """
    _REGISTRY[lift](image, qemu)


@register_lift("index")
def _index(image: Path, qemu: Qemu) -> None:
    index(DiskAtRest(image, qemu))


@register_lift("squash")
def _squash(image: Path, qemu: Qemu) -> None:
    squash(DiskAtRest(image, qemu))
