"""File systems as data: entries, layer archives, and trees that are read below one descriptor."""
