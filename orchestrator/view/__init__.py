"""What people see of a build: events in, a display of them out.

``open_display`` picks one of four displays; ``events`` is all that they are told. Both the live screen and the plain
lines are functions of a ``state`` that the events fold into; ``problems`` shows errors and warnings everywhere.
"""

from __future__ import annotations

from orchestrator.view.display import MODES, Display, open_display

__all__ = ["MODES", "Display", "open_display"]
