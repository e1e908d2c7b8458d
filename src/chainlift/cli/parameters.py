"""What verbs foresee with that show more than a cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from chainlift.cost import Parameters


def parameters_at_hand() -> Parameters | None:
    """Return the parameters for the QEMU that is installed here, without a measure of this host.

    Where a calibration cannot be read, a line says so, and there are none: a verb goes on without cost.
    """
    from chainlift.cost import find_parameters
    from chainlift.errors import InputError
    from chainlift.qemu.binary import installed_version

    try:
        return find_parameters(installed_version(), may_measure=False)
    except InputError as error:
        click.echo(f"chainlift: {error}", err=True)
        return None
