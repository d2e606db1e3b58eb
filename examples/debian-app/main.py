"""Greets its arguments, and says on which machine it runs."""

import os
import sys

import iniconfig

print(f"hello {' '.join(sys.argv[1:])} from {os.uname().machine}, with {iniconfig.__name__} out of {sys.path[1]}")
