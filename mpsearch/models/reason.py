"""The first line of somebody else's error, as a sentence."""

from __future__ import annotations


def first_line(error: Exception) -> str:
    """First line with text of an error's message, or its class where it has none; ends with a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if text.endswith((".", "!", "?")) else f"{text}."
