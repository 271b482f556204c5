"""The page in a browser: nothing is complained of, a click on a point shows its bits, and a large study opens at
once.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, browser, missing
from plotly.offline import get_plotlyjs
from saved_study import large_study, save

from mpsearch.report import write_report

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
READY = "document.body.dataset.ready"
TEXTS = "document.getElementById('figure-bits').data[0].text.join()"
PICKED = "document.getElementById('picked').dataset.point"
COMMAND = "document.getElementById('command').textContent"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save(tmp_path_factory.mktemp("chromium") / "study", large_study(layers=12, trials=40))
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(study: Path) -> Iterator[Browser]:
    with browser() as window:
        window.open(study / "report.html")
        window.until(READY)
        yield window


def pick_by_click(page: Browser, place: int) -> None:
    """Click where a point of the front is drawn."""
    where = page.run(
        "const div = document.getElementById('figure-front'); div.scrollIntoView({block: 'center'});"
        f"const marks = div.querySelectorAll('.scatterlayer .trace')[0].querySelectorAll('.points path');"
        f"const box = marks[{place}].getBoundingClientRect();"
        "return [box.x + box.width / 2, box.y + box.height / 2]"
    )
    page.click(*where)


def bits_of(study: Path, place: int) -> str:
    """Weight bits of a point of the front, as the figure writes them."""
    front, problem = (json.loads((study / f"{name}.json").read_text()) for name in ("front", "problem"))
    indices = front["points"][place]["indices"]
    return ",".join(row[i][1] for row, i in zip(problem["candidates"], indices, strict=True))


def test_a_click_shows_the_bits_of_a_point(page: Browser, study: Path) -> None:
    for name in ("bits", "front"):
        page.run(f"document.getElementById('figure-{name}').scrollIntoView()")
        page.until(f"document.getElementById('figure-{name}').data")
    assert page.run(f"return {TEXTS}") == ",".join("5" * 12)  # the choice: W5A8 everywhere
    assert page.run(f"return {COMMAND}").endswith("--point best --target ort-cpu")
    pick_by_click(page, 511)
    assert page.until(f"{PICKED} !== 'best' && {PICKED}") == "front:511"
    assert page.run(f"return {TEXTS}") == bits_of(study, 511)
    assert page.run(f"return {COMMAND}").endswith("--point front:511 --target ort-cpu")


def test_what_is_chosen_from_the_list_and_the_slider(page: Browser, study: Path) -> None:
    page.run(
        "const list = document.getElementById('rows');"
        "list.value = [...list.options].find((o) => o.text.startsWith('uniform')).value;"
        "list.dispatchEvent(new Event('change'))"
    )
    assert page.run(f"return {PICKED}") == "W4A8" and page.run(f"return {TEXTS}") == ",".join("4" * 12)
    page.run("const s = document.getElementById('along'); s.value = 3; s.dispatchEvent(new Event('input'))")
    assert page.run(f"return {PICKED}") == "front:3" and page.run(f"return {TEXTS}") == bits_of(study, 3)


def test_axes_can_be_switched(page: Browser) -> None:
    titles = page.run("return [...document.getElementById('upward').options].map((o) => o.text)")
    assert [title for title in titles if title.startswith("top-1")]
    before = page.run("return document.getElementById('figure-front').data[1].y[0]")
    for select, count in (("across", 4), ("upward", 5)):
        assert page.run(f"return document.getElementById('{select}').options.length") == count
        for i in (*range(1, count), 0):
            page.run(
                f"const s = document.getElementById('{select}'); s.value = {i}; s.dispatchEvent(new Event('change'))"
            )
    page.run("document.getElementById('zoom').click()")
    assert page.run("return document.getElementById('figure-front').data[1].y[0]") == pytest.approx(before)


def test_the_console_is_silent(page: Browser) -> None:
    for name in page.run(
        "return [...document.querySelectorAll('[data-figure]')].map((d) => d.dataset.figure)"
    ):
        page.run(f"document.getElementById('figure-{name}').scrollIntoView()")
        page.until(f"document.getElementById('figure-{name}').data")
    page.run("document.querySelectorAll('button.copy').forEach((b) => b.click())")
    page.until("document.querySelector('button.copy').textContent === 'Copied'")
    assert page.errors() == []


@pytest.mark.parametrize("dark", [False, True])
def test_nothing_stands_out_of_a_phone(study: Path, dark: bool) -> None:
    with browser(390, 844, dark=dark) as phone:
        phone.open(study / "report.html")
        phone.until(READY)
        assert phone.run("return document.documentElement.scrollWidth") <= 390
        assert phone.run("return matchMedia('(prefers-color-scheme: dark)').matches") is dark
        wide = "[...document.querySelectorAll('table, pre, .figure, select')].filter((e) => e.getBoundingClientRect().right > 390)"
        assert phone.run(f"return {wide}.map((e) => e.outerHTML.slice(0, 80))") == []


def test_a_thousand_trials_open_at_once(tmp_path: Path) -> None:
    folder = save(tmp_path / "large", large_study(layers=150, trials=1000))
    size = write_report(folder).stat().st_size - len(get_plotlyjs().encode())
    assert size < 6e6
    with browser() as window:
        window.open(folder / "report.html")
        window.until(READY)
        # processor time of the page, which other work on the machine does not change
        assert window.process_seconds() < 3.0
