"""Assembles a board's disk image and update bundle from Debian packages and Spoke's own binaries, without root."""
