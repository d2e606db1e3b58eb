"""The documents an image is made of, as the OCI image specification and Docker's schema 2 write them."""
