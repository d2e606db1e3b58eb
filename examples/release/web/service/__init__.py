"""A web service that says which version it is."""
