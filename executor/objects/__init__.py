"""Objects by key: the storage of remote caches, in a directory or at a service."""
