"""File-system layers as data: entries, tar archives, overlay directories, and the ways from one to another."""
