#!/usr/bin/python3
"""Debian's chainlift: as the module, and with what chainlift-bundled has before what Debian has."""

import sys

sys.path.insert(0, "/usr/lib/chainlift-bundled")

from chainlift.__main__ import main

sys.exit(main())
