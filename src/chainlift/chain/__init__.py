"""Open a chain safely and resolve it into one map."""
