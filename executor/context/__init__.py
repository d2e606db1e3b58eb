"""Build contexts: the files that a build may COPY, wherever they come from, as a ``Tree``."""
