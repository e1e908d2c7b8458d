"""The schema of result files, reading and writing them."""
