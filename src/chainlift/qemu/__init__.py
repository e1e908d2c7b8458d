"""The QEMU that is there: find it, start it, talk to it, run a job."""
