"""Snapshots that go: which ones, and how a chain does without them while nothing that is kept reads other bytes."""
