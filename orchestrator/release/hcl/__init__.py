"""HCL: its syntax, its values, and the functions that bake files may call."""
