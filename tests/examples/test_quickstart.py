"""The notebook runs from top to bottom, cell by cell, as a kernel would run it."""

import ast
import json
from pathlib import Path

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


def run_cell(source, names):
    """Run a cell; what its last line gives, as a notebook shows it."""
    body = ast.parse(source).body
    last = ast.Expression(body.pop().value) if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    return None if last is None else eval(compile(last, "cell", "eval"), names)  # noqa: S307  (the notebook is ours)


def test_the_quickstart_notebook_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(NOTEBOOK.read_text())
    assert all(not cell.get("outputs") for cell in notebook["cells"]), "clear the outputs before committing"
    names = {"__name__": "notebook"}
    shown = [
        run_cell("".join(cell["source"]), names) for cell in notebook["cells"] if cell["cell_type"] == "code"
    ]
    tables = [value for value in shown if hasattr(value, "_repr_html_")]
    assert tables and "[chosen]" in tables[0]._repr_html_()
    assert "float: " in capsys.readouterr().out
    assert (tmp_path / "studies" / "quickstart" / "artifact" / "model.safetensors").is_file()
