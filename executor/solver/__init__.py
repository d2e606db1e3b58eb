"""From a parsed Dockerfile to an image: the stage graph, and one module for each kind of step."""
