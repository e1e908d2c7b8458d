"""A guest that boots, and how it is driven."""
