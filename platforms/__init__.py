"""What platforms are called, what this host can run, and how the rest is emulated. Knows no image and no build."""
