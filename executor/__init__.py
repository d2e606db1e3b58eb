"""One job -> one image: Dockerfile, context, sandbox, layers, cache, store, registry client."""
