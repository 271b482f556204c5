"""Hooks of the documentation site (mkdocs.yml): pages that lie elsewhere, and the command reference.

Links in the pages are those of the repository, so that they work there too; here
`../benchmarks/results/x.md` becomes `measured/x.md`. The command reference is written from the command line
itself, so it cannot be out of date.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
SINGLE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "README.md": "index.md",
    "studies/README.md": "studies/README.md",
}
FOLDERS = {"benchmarks/results": "measured", "studies/examples": "studies/examples", "examples": "examples"}
SUFFIXES = (".md", ".jsonl", ".json", ".txt", ".py", ".ipynb", ".html")
COMMANDS = "<!-- commands -->"
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#\s]+)([^)\s]*)\)")


def mounted() -> dict[Path, str]:
    """Files outside docs/ that the site has -> where they are in it."""
    found = {ROOT / name: to for name, to in SINGLE.items() if to != "index.md"}
    for folder, to in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and path.suffix in SUFFIXES:
                found[path] = f"{to}/{path.relative_to(ROOT / folder).as_posix()}"
    return found


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Show the comparison with other tools where it has been measured: its picture is there then."""
    from pathspec import GitIgnoreSpec

    if (ROOT / "docs" / "results-size.svg").is_file():
        place = next(i for i, entry in enumerate(config.nav) if "Results" in entry)
        config.nav[place] = {"Results": [{"Beside other tools": "results.md"}, config.nav[place]]}
    else:
        config.exclude_docs = GitIgnoreSpec.from_lines(["results.md"])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies elsewhere."""
    from mkdocs.structure.files import File

    for path, to in mounted().items():
        files.append(File.generated(config, to, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links of the repository into links of the site, and write the command reference."""
    source = Path(str(page.file.abs_src_path))
    places = mounted() | {path: path.relative_to(ROOT / "docs").as_posix() for path in _own()}
    places[ROOT / "README.md"] = "index.md"
    here = places.get(source, page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        picture, shown, link, anchor = match.groups()
        target = (source.parent / link).resolve()
        if target in places:
            link = os.path.relpath(places[target], Path(here).parent).replace(os.sep, "/")
        elif (ROOT / "docs") not in source.parents and not picture:
            return shown  # a page of the repository names what the site does not have, such as a test
        return f"{picture}[{shown}]({link}{anchor})"

    return _LINK.sub(moved, markdown.replace(COMMANDS, _commands() if COMMANDS in markdown else ""))


def _own() -> list[Path]:
    return [path for path in (ROOT / "docs").rglob("*") if path.is_file()]


def _commands() -> str:
    """Every command with its options, from the command line's own definition."""
    import typer

    from mpsearch.cli import app

    group: Any = typer.main.get_command(app)
    return "\n".join(_command(name, command) for name, command in sorted(group.commands.items()))


def _command(name: str, command: Any) -> str:
    lines = [f"## `mpsearch {name}`\n", f"{_plain(command.help)}\n", "| | | default |", "|---|---|---|"]
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or parameter.name == "help":
            continue
        written = " ".join(parameter.opts) if parameter.opts[0].startswith("-") else parameter.name.upper()
        lines.append(f"| `{written}` | {_plain(getattr(parameter, 'help', ''))} | {_default(parameter)} |")
    examples = [line.strip() for line in (command.epilog or "").splitlines() if "mpsearch " in line]
    if examples:
        lines += ["", "```bash", *(line.replace("\\[", "[") for line in examples), "```"]
    return "\n".join(lines) + "\n"


def _plain(text: str | None) -> str:
    """One line that Markdown and a table leave as it is."""
    shown = " ".join((text or "").replace("\b", "").split())
    return re.sub(r"([|*_<>\[\]])", r"\\\1", shown)


def _default(parameter: Any) -> str:
    value = parameter.default
    if value is None or value is False or callable(value) or parameter.required:
        return "required" if parameter.required else ""
    return f"`{getattr(value, 'value', value)}`"
