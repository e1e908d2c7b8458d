"""``python -m chainlift`` is the ``chainlift`` command."""

from chainlift.cli.main import main

main()
