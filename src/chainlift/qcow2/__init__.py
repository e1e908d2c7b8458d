"""One file's format: header, tables, refcounts, compressed clusters."""
