"""The documentation site builds without a warning: every link, anchor and documented name is there."""

import logging

import pytest


@pytest.fixture
def built(tmp_path, monkeypatch):
    """The folder of the site, and what was warned of."""
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    from doc_blocks import ROOT
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    warned = []

    class Kept(logging.Handler):
        def emit(self, record):
            warned.append(record.getMessage())

    log, handler = logging.getLogger("mkdocs"), Kept(logging.WARNING)
    log.addHandler(handler)
    try:
        config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=False)
        config.plugins.run_event("startup", command="build", dirty=False)
        build(config)
    finally:
        log.removeHandler(handler)
    return tmp_path / "site", warned


@pytest.mark.filterwarnings("ignore")  # of MkDocs and its plugins, which are not ours
def test_the_site_builds_without_a_warning(built):
    site, warned = built
    assert not warned
    commands = (site / "reference" / "commands.html").read_text()
    assert "mpsearch run" in commands and "--budget" in commands
    assert "Raises" in (site / "reference" / "api.html").read_text()
    measured = (site / "measurements.html").read_text()
    assert 'href="measured/few_bits.html"' in measured and (site / "measured" / "few_bits.html").is_file()
    assert "fonts.googleapis" not in measured  # nothing is loaded from elsewhere
