"""Build contexts, as a ``Tree``: directories, git repositories, URLs and archives."""
