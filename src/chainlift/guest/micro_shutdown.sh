#!/bin/busybox sh
# What the guest agent calls to shut the system down.
sync
umount -a -r 2>/dev/null
poweroff -f
