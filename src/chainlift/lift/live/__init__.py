"""A lift under a running VM: QEMU's nodes read and compared, the guard rails, the pivot and what is built on it."""
