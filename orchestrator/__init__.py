"""One build -> many jobs: command line, plan, nodes, live view, index, publish."""
