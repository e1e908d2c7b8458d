"""New files out of a chain: merged, copied, written as an index or a squash. Knows no disk, nor who holds it."""
