"""Where time goes: samples by perf, names for addresses, stacks, recursion folded, flame graphs."""
