"""Assembles a board's disk image and the parts of its update bundle from Debian packages and Spoke's binaries, without root."""
