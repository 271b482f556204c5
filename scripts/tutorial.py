"""Run the tutorial as it is written: every file and every command of docs/tutorial.md, in order, in a folder.

`python scripts/tutorial.py FOLDER` stops at the first command that fails, and tells what each took.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "tutorial.md"
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.M | re.S)


def follow(page: str, folder: Path) -> list[tuple[str, float]]:
    """Write the page's files and run its commands.

    Args:
        page: Markdown; a Python block with a title is a file, a bash block is run.
        folder: Where; a `cd` of a block holds for the blocks behind it.
    Returns: Each block of commands and the seconds that it took.
    Raises: subprocess.CalledProcessError: A command failed.
    """
    here, took = folder, []
    for language, title, text in BLOCK.findall(page):
        if language == "python":
            (here / title).write_text(text)
        elif language == "bash":
            began = time.monotonic()
            print(f"$ {text.strip()}", flush=True)
            script = f"set -euo pipefail\n{text}\npwd > {folder}/.here\n"
            subprocess.run(["bash", "-c", script], cwd=here, check=True)
            here = Path((folder / ".here").read_text().strip())
            took.append((text.strip(), time.monotonic() - began))
    return took


def main() -> None:
    """Follow the page in the folder of the command line."""
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    took = follow(PAGE.read_text(), folder)
    for text, seconds in took:
        print(f"{seconds:7.1f} s  {text.splitlines()[0]}")
    print(f"{sum(seconds for _, seconds in took):7.1f} s in all")


if __name__ == "__main__":
    main()
