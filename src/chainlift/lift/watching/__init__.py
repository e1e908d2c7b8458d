"""Keeping the chains of many VMs short: ``chainlift watch``."""
