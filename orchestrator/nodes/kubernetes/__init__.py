"""Nodes that are a namespace of a Kubernetes cluster: each executor is a Job there."""
