"""Debian packages, fetched by apt and unpacked: nothing is installed. Works as root and as an ordinary user."""
