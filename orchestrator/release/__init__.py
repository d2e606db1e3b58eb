"""Releases: several images, built in order, tested, and published together or not at all."""
