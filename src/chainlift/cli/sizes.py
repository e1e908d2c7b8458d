"""A size as an option of a verb."""

from __future__ import annotations

import click


class _Size(click.ParamType):  # type: ignore[type-arg,unused-ignore] # generic in newer releases of click
    """A size as qemu-img writes it: 64M, 1.5G."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from chainlift.units import parse_size

        if isinstance(value, int):
            return value
        assert isinstance(value, str)
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


SIZE = _Size()
