"""The machine under us: caches, file systems, packages. Knows nothing of chains or of QEMU."""
