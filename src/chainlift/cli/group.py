"""A command that has commands."""

from __future__ import annotations

import click


class Group(click.Group):
    """A group that shows its help as bad use where nothing follows its name: on standard error, with status 2.

    From 8.2 on click does so by itself; before, as in Debian 12 and 13, it takes that for a question.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Show the help where there is nothing to parse."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)
