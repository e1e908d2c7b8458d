#!/bin/busybox sh
# The first process: mounts what programs expect, loads the modules, and becomes the guest agent's keeper.
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/shm /run /tmp /mnt
mount -t tmpfs shm /dev/shm
while read -r module; do insmod "/modules/$module.ko"; done </modules/order
port=
tries=0
while [ -z "$port" ]; do
    for directory in /sys/class/virtio-ports/*; do
        read -r name <"$directory/name" && [ "$name" = org.qemu.guest_agent.0 ] && port=${directory##*/}
    done 2>/dev/null
    tries=$((tries + 1))
    [ "$tries" = 3000 ] && { echo "chainlift: no serial port for the guest agent" >/dev/console; poweroff -f; }
    [ -n "$port" ] || sleep 0.01
done
# The disk is found in parallel (the kernel scans SCSI asynchronously): the agent must not answer before.
tries=0
until [ -b /dev/sda ]; do
    tries=$((tries + 1))
    [ "$tries" = 3000 ] && { echo "chainlift: no disk /dev/sda" >/dev/console; poweroff -f; }
    sleep 0.01
done
read -r uptime _ </proc/uptime
echo "chainlift: up after $uptime s" >/dev/console
while :; do
    /usr/sbin/qemu-ga -m virtio-serial -p "/dev/$port" -t /run >/dev/console 2>&1
    sleep 0.1
done
