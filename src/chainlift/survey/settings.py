"""What a survey is told, apart from where to look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chainlift.cost.parameters import Parameters
    from chainlift.survey.policy import Policy


@dataclass(frozen=True)
class Settings:
    """The same for every chain."""

    #: Which snapshots are to stay; None: all.
    policy: Policy | None = None
    #: Of the QEMU whose costs are predicted; None: nothing is.
    parameters: Parameters | None = None
