"""Displays of a build on stderr, driven by a stream of events.

``open_display`` selects one of four displays; ``events`` is all that they are given. The live screen and the plain
lines are functions of a ``BuildState``, into which the events are folded; ``problems`` renders errors and warnings.
"""

from __future__ import annotations

from orchestrator.view.display import MODES, Display, open_display

__all__ = ["MODES", "Display", "open_display"]
