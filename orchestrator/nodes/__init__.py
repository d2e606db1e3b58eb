"""Nodes: the places where executors run, and which of them builds a platform."""
