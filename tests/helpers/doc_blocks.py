"""Code blocks of the README and the documentation, with what a comment above each says of it."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
COMMANDS, DATA = ("", "bash"), ("text", "toml", "json")
"""Languages of fences: what is typed into a shell, and what is no code. Python is the other."""

_FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```\s*$", re.M | re.S)
_REASON = re.compile(r"<!-- not run: ((?:(?!-->).)+?) -->\s*\Z", re.S)


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Args:
        page: File, from the repository's root.
        line: Of its fence.
        language: What stands behind the fence, without a title.
        title: Name of the file that the block is; None where it is none.
        text: Inside of it.
        reason: Why it cannot be run here, as a comment right above says; None where there is none.
    """

    page: str
    line: int
    language: str
    title: str | None
    text: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(path: Path) -> list[Block]:
    """All of a page, in order."""
    text, found = path.read_text(), []
    for match in _FENCE.finditer(text):
        language, _, rest = match[2].strip().partition(" ")
        title = re.search(r'title="([^"]+)"', rest)
        before = _REASON.search(text[: match.start()])
        line = text[: match.start()].count("\n") + 1
        inside = re.sub(rf"^{match[1]}", "", match[3], flags=re.M)
        page = path.relative_to(ROOT).as_posix()
        found.append(
            Block(page, line, language, title and title[1], inside, before and " ".join(before[1].split()))
        )
    return found


def all_blocks() -> list[Block]:
    """Of every page."""
    return [block for path in PAGES for block in blocks(path)]


def commands(block: Block) -> list[list[str]]:
    """What a shell would run, word by word; comments and joined lines as a shell takes them."""
    found = []
    for line in block.text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in shlex.split(line, comments=True):
            if word in ("&&", ";"):
                found.append(words)
                words = []
            else:
                words.append(word)
        found.append(words)
    return [words for words in found if words]
