"""Lifting a disk of a libvirt domain by libvirt's own block copy, so that libvirt knows what happened."""
