"""`write_report`: the page around the sections. One file, nothing loaded from elsewhere."""

from __future__ import annotations

from pathlib import Path

from plotly.offline import get_plotlyjs

from mpsearch import files
from mpsearch.report import figures, sections
from mpsearch.report.markup import text
from mpsearch.report.saved import Saved, damaged, read_saved

_STYLE = """
:root { color-scheme: light dark; --ink: #1b2430; --soft: #5c6775; --page: #f5f7fa; --card: #ffffff; --line: #dfe4ea; --accent: #3b7dd8;
  --mark: #fff4e0; --yes: #1e7d46; --no: #b3392b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa5b3; --page: #12161c; --card: #1a2029; --line: #2d3642; --accent: #6ba4ee;
  --mark: #3a2f1a; --yes: #5fc98a; --no: #f08a7c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .6rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 0 0 .6rem; }
.verdict { font-size: 1.1rem; border-left: 4px solid var(--accent); padding-left: 1rem; margin: 0 0 1.5rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1.1rem 1.25rem; margin: 0 0 1.25rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; width: 100%; }
th { text-align: right; color: var(--soft); font-weight: 600; vertical-align: bottom; } td { text-align: right; vertical-align: top; }
th, td { padding: .45rem .5rem; border-bottom: 1px solid var(--line); } th:first-child, td:first-child { text-align: left; padding-left: .4rem; }
.results td { white-space: nowrap; } .results th:first-child, .results td:first-child { position: sticky; left: 0; background: var(--card);
  white-space: normal; min-width: 8.5rem; } tr:has(mark.chosen) td, .results tr:has(mark.chosen) td:first-child { background: var(--mark); font-weight: 600; }
small { display: block; font-size: .76rem; font-weight: 400; color: var(--soft); } .none { color: var(--soft); }
mark.chosen { background: var(--accent); color: #fff; border-radius: 6px; padding: 0 .4rem; margin-left: .4rem; font-size: .72rem; }
.yes { color: var(--yes); font-weight: 600; } .no { color: var(--no); font-weight: 600; } .note { color: var(--soft); font-size: .88rem; margin: .5rem 0 0; }
.facts thead { display: none; } .facts td { text-align: left; overflow-wrap: anywhere; } .facts td:first-child { color: var(--soft); white-space: nowrap; }
.bytes td:first-child { overflow-wrap: anywhere; } code, pre { font: .85rem/1.5 ui-monospace, Menlo, Consolas, monospace; }
pre { background: var(--page); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; overflow-x: auto; }
.xtick text, .ytick text, .xtitle, .ytitle, .legendtext { fill: var(--ink) !important; } .bar text { font-size: 11px; }
@media (max-width: 640px) { main { padding: 1rem .5rem 2rem; } section { padding: .9rem .8rem; border-radius: 8px; } h1 { font-size: 1.35rem; } }
@media print { :root { --page: #fff; --card: #fff; --ink: #000; --soft: #444; --line: #bbb; --mark: #fff4e0; --yes: #1e7d46; --no: #b3392b; }
  main { max-width: none; padding: 0; } section { break-inside: avoid; border: 0; padding: .5rem 0; } .scroll { overflow: visible; } table { font-size: .6rem; }
  .results th, .results td { white-space: normal; padding: .2rem; } pre { white-space: pre-wrap; } }
"""


def write_report(study_path: Path) -> Path:
    """Write `report.html` from a study's saved results. Nothing is computed anew, and no model is loaded.

    Args:
        study_path: Folder of a finished study.
    Returns: The file: self-contained, a few megabytes, most of them Plotly.
    Raises: StudyError: The study is missing, unfinished or damaged.
    """
    study_path = Path(study_path)
    saved = read_saved(study_path)
    try:
        page = _page(saved)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError) as error:  # of the shape of what was read
        raise damaged(study_path, error) from error
    path = study_path / "report.html"
    files.write_text(path, page)
    return path


def _page(saved: Saved) -> str:
    config = saved.study["config"]
    name = config["model"] or "resnet34 fitted on scikit-learn's digits"
    title = f"{name} within {' and '.join(b.text for b in saved.budgets)}"
    body = "".join(f"<section><h2>{head}</h2>{content}</section>" for head, content in _sections(saved))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{text(title)}</title><style>{_STYLE}</style><script>{get_plotlyjs()}</script></head>'
        f'<body><main><h1>{text(title)}</h1><p class="verdict">{sections.verdict(saved)}</p>'
        f"<noscript><p>The figures need JavaScript; their numbers are in front.csv and front.json.</p></noscript>{body}</main></body></html>\n"
    )


def _sections(saved: Saved) -> list[tuple[str, str]]:
    front, trials = saved.front, saved.front["measured"]
    undrawn, over = sum(d <= 0 for _, d in saved.points), sum(not t["fits"] for t in trials)
    drawn = f"{front['points_in_all']:,} points{'' if front['exact'] else ', not proven exact'}"
    drawn += f"; {undrawn:,} of damage 0 have no place on a logarithmic axis." if undrawn else "."
    crosses = f"the {over} over a budget are crosses" if over else "all keep the budgets"
    searched = saved.study["splits"]["parts"]["search"]["images"]
    last = "size and latency are" if saved.timed else "the size on disk is"
    after = f"Reconstruction is done for the finalists and the largest uniform assignment that fits; {last} of the last stage of each row."
    notes = _note(f"± is one standard error, √(p(1−p)/N), in points. MB is 10⁶ bytes, MiB is 2²⁰. {after}{_on_few(saved)}")
    gained = sections.reconstructions(saved)
    learned = _note("Errors are mean squared errors of a block's output on the calibration images.")
    return [
        ("Results", sections.results(saved) + notes),
        ("Exact front of the predicted damage", figures.front_figure(saved) + _note(f"{drawn} The damage is a proxy: the next figure measures.")),
        (
            "Measured trials",
            figures.trials_figure(saved)
            + _note(f"{len(trials)} assignments with nearest rounding on {searched:,} images; {crosses}; rings are the Pareto set."),
        ),
        ("Bits of each layer", figures.bits_figure(saved)),
        *([("What reconstruction gained", gained + learned)] if gained else []),
        ("What is not quantised", sections.not_quantized(saved)),
        ("How to deploy", sections.deploy(saved)),
        ("Provenance", sections.provenance(saved)),
    ]


def _on_few(saved: Saved) -> str:
    """How many images the rows are on that no finalist needs, where these are not all."""
    whole, *rows = (row["nearest"]["metrics"]["images"] for row in saved.rows)
    few = min(rows, default=whole)
    return f" Nearest rounding is evaluated on {few:,} of the {whole:,} evaluation images." if few < whole else ""


def _note(content: str) -> str:
    return f'<p class="note">{content}</p>'
