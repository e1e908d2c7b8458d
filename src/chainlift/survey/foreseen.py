"""What a survey keeps of what the model foresees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chainlift.cost import find_parameters
from chainlift.qemu.binary import installed_version
from chainlift.qemu.find import find_qemu
from chainlift.results.survey.records import Cost

if TYPE_CHECKING:
    from chainlift.cost import Parameters
    from chainlift.cost.figures import Cost as Foreseen

_FIGURES: Final = ("read_4k_cpu_s", "read_64k_cpu_s", "memory_bytes", "open_cpu_s")


def to_record(cost: Foreseen | None) -> Cost | None:
    """Return what a survey keeps of what the model foresees."""
    if cost is None:
        return None
    known = {name: figure for name in _FIGURES if (figure := cost.figures()[name]) is not None}
    values = {name: figure.value for name, figure in known.items()}
    values |= {f"{name}_low": figure.low for name, figure in known.items()}
    values |= {f"{name}_high": figure.high for name, figure in known.items()}
    return Cost(**{name: float(f"{value:.4g}") for name, value in values.items()})


def parameters_of(qemu: str | None) -> Parameters:
    """Return the parameters of a QEMU.

    :param qemu: as people name one; None: the host's, or, where it has none, the newest that is known.
    :raise InputError: if it names none, or what was calibrated cannot be read.
    """
    return find_parameters(installed_version() if qemu is None else find_qemu(qemu, need=()).version_text)
