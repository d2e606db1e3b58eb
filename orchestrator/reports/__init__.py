"""Reports of a build for CI systems, written when it ends, however it ends: each is a function of a ``BuildState``."""
