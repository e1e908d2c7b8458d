#!/bin/sh
# mmdebstrap --customize-hook: $1 is the root of the finished system.
# Makes a guest of it whose disk changes only by what a study does to it, and that boots quickly under emulation.
set -eu
root=$1
etc=$root/etc

# No fsck (the last field), no write at every read, and nothing that a program logs or caches reaches the disk.
cat >"$etc/fstab" <<'END'
/dev/sda /        ext4  noatime,errors=remount-ro 0 0
tmpfs    /tmp     tmpfs mode=1777                 0 0
tmpfs    /var/tmp tmpfs mode=1777                 0 0
tmpfs    /var/log tmpfs mode=0755                 0 0
END
mkdir -p "$etc/systemd/journald.conf.d" "$etc/systemd/system.conf.d"
printf '[Journal]\nStorage=volatile\nRuntimeMaxUse=8M\n' >"$etc/systemd/journald.conf.d/chainlift.conf"
printf '[Manager]\nDefaultTimeoutStopSec=10s\nDefaultTimeoutStartSec=300s\n' >"$etc/systemd/system.conf.d/chainlift.conf"

# A given identity: with an empty one systemd takes every boot for the first, and presets all units again.
echo chainlift >"$etc/hostname"
printf '127.0.0.1 localhost chainlift\n' >"$etc/hosts"
echo 636861696e6c6966740000000000000a >"$etc/machine-id"
rm -f "$root/var/lib/systemd/random-seed"

# Units that write to the disk by themselves, wait for what is not there, or that nobody in this guest needs.
# Masking one that a release does not have does no harm.
mask() { for unit; do ln -sf /dev/null "$etc/systemd/system/$unit"; done; }
mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
    fstrim.timer systemd-tmpfiles-clean.timer systemd-random-seed.service systemd-update-utmp.service \
    systemd-update-utmp-runlevel.service systemd-machine-id-commit.service systemd-hwdb-update.service \
    systemd-journal-flush.service systemd-journal-catalog-update.service systemd-update-done.service \
    systemd-pstore.service systemd-firstboot.service systemd-sysusers.service ldconfig.service
mask getty.target getty@.service getty-static.service serial-getty@.service console-getty.service autovt@.service \
    networking.service systemd-networkd-wait-online.service ifupdown-wait-online.service
mask systemd-binfmt.service proc-sys-fs-binfmt_misc.automount proc-sys-fs-binfmt_misc.mount dev-hugepages.mount \
    dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount \
    sys-fs-fuse-connections.mount modprobe@.service kmod-static-nodes.service systemd-repart.service \
    systemd-modules-load.service systemd-rfkill.service systemd-rfkill.socket systemd-user-sessions.service
ln -sf /lib/systemd/system/multi-user.target "$etc/systemd/system/default.target"

# Modules that only match the emulated CPU and chipset: loading one costs up to a second of emulation.
cat >"$etc/modprobe.d/chainlift.conf" <<'END'
install kvm /bin/false
install kvm_amd /bin/false
install kvm_intel /bin/false
install aesni_intel /bin/false
install ghash_clmulni_intel /bin/false
install crct10dif_pclmul /bin/false
install sha1_ssse3 /bin/false
install sha256_ssse3 /bin/false
install sha512_ssse3 /bin/false
install powernow_k8 /bin/false
install acpi_cpufreq /bin/false
install i2c_i801 /bin/false
install iTCO_wdt /bin/false
install ata_generic /bin/false
install ata_piix /bin/false
END
# Of the 240 devices that udev is shown at boot, the forty that have something to be done about.
mkdir -p "$etc/systemd/system/systemd-udev-trigger.service.d"
cat >"$etc/systemd/system/systemd-udev-trigger.service.d/chainlift.conf" <<'END'
[Service]
ExecStart=
ExecStart=-udevadm trigger --type=devices --action=add --subsystem-match=pci --subsystem-match=virtio \
    --subsystem-match=virtio-ports --subsystem-match=block --subsystem-match=net
END
# The names of PCI and USB vendors: every device's event would search 10 MB of them.
rm -f "$root/usr/lib/udev/hwdb.bin" "$root/lib/udev/hwdb.bin"

# The agent halts by `shutdown -P +0`, a time that systemd hands to logind over D-Bus; this guest has no D-Bus.
rm -f "$root/usr/sbin/shutdown"
printf '#!/bin/sh\nexec systemctl poweroff --no-block\n' >"$root/usr/sbin/shutdown"
chmod 755 "$root/usr/sbin/shutdown"
