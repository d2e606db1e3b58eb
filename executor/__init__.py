"""One job -> one image: Dockerfile, context, sandbox, layers, cache, store, registry client."""

__version__ = "0.1.0"
