"""A virtual machine that runs."""

from __future__ import annotations


class VirtualMachine:
    """Placeholder: lands with the machine's argument vector."""
