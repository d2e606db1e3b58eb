"""Bake files (``docker-bake.hcl``, ``docker-bake.json``) as releases."""
