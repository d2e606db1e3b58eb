"""The JSON documents of an image: OCI image specification and Docker image manifest version 2, schema 2."""
