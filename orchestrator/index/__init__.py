"""Image indexes and copies of images: ``kanifold index`` and ``kanifold copy``. Loaded by no build."""
