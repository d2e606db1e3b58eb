"""Documents on stdout: byte by byte for programs, without effects on a terminal."""

from __future__ import annotations

import io
import json
import sys

import pytest

from orchestrator.view.stdout import print_document

HOSTILE = json.dumps({"a\u009b": "\u202e\U000e0001\x7f\x85 ü"}, ensure_ascii=False, indent=1).encode()


def test_programs_get_every_byte(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    print_document(HOSTILE)
    assert capsysbinary.readouterr().out == HOSTILE


def test_terminals_get_equal_json_without_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", screen)
    print_document(HOSTILE)
    shown = screen.getvalue()
    assert json.loads(shown) == json.loads(HOSTILE)
    assert all(char == "\n" or char.isprintable() for char in shown)
    assert "ü" in shown
