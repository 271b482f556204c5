"""Extension points: members found in files and entry points, options read from text; and the errors and files
that lie as low.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from typing import Literal

import pytest

from mpsearch import errors, files
from mpsearch.errors import (
    InfeasibleError,
    MissingExtraError,
    MpsearchError,
    OptionError,
    UnknownNameError,
    UserError,
)
from mpsearch.registry import Registry


@dataclass(frozen=True)
class Plain:
    """Options of every type."""

    count: int = 1
    share: float = 0.5
    text: str = "a"
    flag: bool = False
    kind: Literal["up", "down"] = "up"
    limit: int | None = 3


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two members and a private module that must not be imported."""
    folder = tmp_path / "thing_members"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from mpsearch.registry import Registry\nTHINGS = Registry('thing', 'thing_members')\n"
    )
    member = (
        "from dataclasses import dataclass\nfrom thing_members import "
        "THINGS\n\n@THINGS.register('{0}')\n@dataclass(frozen=True)\nclass C:\n    x: int = 1\n"
    )
    (folder / "first.py").write_text(member.format("first"))
    (folder / "second.py").write_text(member.format("second"))
    (folder / "_private.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [m for m in sys.modules if m.split(".")[0] == "thing_members"]:
        del sys.modules[name]


def test_members_are_found_in_the_files_of_the_package(package):
    from thing_members import THINGS

    assert THINGS.names() == ["first", "second"]
    assert dataclasses.asdict(THINGS.create("second:x=7")) == {"x": 7}
    assert THINGS.get("first").name == "first"


def test_members_of_other_packages_come_through_entry_points(package, monkeypatch):
    from thing_members import THINGS

    class Entry:
        name = "outside"

        @staticmethod
        def load():
            return Plain

    asked = []
    monkeypatch.setattr(
        "mpsearch.registry.importlib.metadata.entry_points", lambda group: asked.append(group) or [Entry]
    )
    assert THINGS.names() == ["first", "outside", "second"]
    assert THINGS.create("outside:count=2") == Plain(count=2)
    assert asked == ["thing_members"]


@pytest.fixture
def things(package):
    registry = Registry("thing", "thing_members")
    registry.register("plain")(Plain)
    registry.register("planet")(type("Planet", (), {}))
    return registry


def test_a_name_that_is_taken_is_an_error(things):
    with pytest.raises(ValueError, match="'plain' is registered twice"):
        things.register("plain")(type("Other", (), {}))
    assert things.register("plain")(Plain) is Plain
    assert things.get("plain") is Plain


def test_an_unknown_name_lists_the_known_and_the_closest(things):
    with pytest.raises(
        UnknownNameError, match=r"No thing is called 'plian'\. Did you mean 'plain'\? Known: plain, planet\."
    ) as caught:
        things.get("plian")
    assert (caught.value.kind, caught.value.name, caught.value.known) == (
        "thing",
        "plian",
        ["plain", "planet"],
    )
    with pytest.raises(UnknownNameError) as caught:
        things.create("zzz:x=1")
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", Plain()),
        (" plain :", Plain()),
        ("plain:count=-4", Plain(count=-4)),
        ("plain:share=1e-3,count=2", Plain(share=1e-3, count=2)),
        ("plain: count=2 , share=3 ", Plain(count=2, share=3.0)),
        ("plain:text=b=c:d", Plain(text="b=c:d")),
        ("plain:text=none", Plain(text="none")),
        *((f"plain:flag={word}", Plain(flag=True)) for word in ("1", "true", "YES", "on")),
        *((f"plain:flag={word}", Plain(flag=False)) for word in ("0", "False", "no", "off")),
        ("plain:kind=down", Plain(kind="down")),
        ("plain:limit=none", Plain(limit=None)),
        ("plain:limit=None", Plain(limit=None)),
        ("plain:limit=9", Plain(limit=9)),
    ],
)
def test_options_of_every_type(things, text, expected):
    found = things.create(text)
    assert found == expected
    assert [type(v) for v in dataclasses.astuple(found)] == [type(v) for v in dataclasses.astuple(expected)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("plain:counts=3", "no option 'counts=3'.*count, share, text, flag, kind, limit"),
        ("plain:count", "no option 'count'"),
        ("plain:=3", "no option '=3'"),
        ("plain:count=2.5", "'count' is '2.5', which is not of the type int"),
        ("plain:count=none", "not of the type int"),
        ("plain:share=much", "'share' is 'much', which is not of the type float"),
        ("plain:flag=perhaps", "'flag' is 'perhaps', which is not of the type bool"),
        ("plain:kind=left", "'kind' is 'left'; it may be 'up', 'down'"),
        ("plain:limit=many", "not of the type int"),
    ],
)
def test_bad_options(things, text, message):
    with pytest.raises(OptionError, match=message):
        things.create(text)


def test_every_error_is_in_the_tree_with_its_exit_code():
    found = {
        name: cls
        for name, cls in vars(errors).items()
        if isinstance(cls, type) and issubclass(cls, Exception)
    }
    assert all(issubclass(cls, MpsearchError) for cls in found.values())
    assert all(name in (errors.__doc__ or "") for name in found)
    codes = {name: cls.exit_code for name, cls in found.items()}
    assert codes.pop("MpsearchError") == 1
    assert codes.pop("InfeasibleError") == 3
    assert set(codes.values()) == {2}
    assert all(issubclass(found[name], UserError) for name in codes)


def test_errors_carry_what_they_say():
    error = InfeasibleError("no", {"size_bytes": 3.0})
    assert (error.least, InfeasibleError("no").least) == ({"size_bytes": 3.0}, {})
    assert "pip install 'mpsearch[openvino]'" in str(MissingExtraError("openvino", "openvino", "The target"))
    cause = ModuleNotFoundError("No module named 'requests'")
    said = str(MissingExtraError("nvidia-modelopt", "modelopt", "Running it", cause))
    assert "cannot be imported (No module named 'requests')" in said and "not installed" not in said
    many = UnknownNameError("layer", "x", [f"l{i:02d}" for i in range(20)], hint="Look again.")
    assert (
        "l11, ... (20 in all)" in str(many) and "l12" not in str(many) and str(many).endswith("Look again.")
    )
    assert "Known: none." in str(UnknownNameError("layer", "x", []))


def test_replacing_leaves_the_old_file_on_failure(tmp_path):
    path = tmp_path / "deep" / "best.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), files.replacing(path) as beside:
        beside.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    for bad in (float("nan"), float("inf"), object()):
        with pytest.raises((ValueError, TypeError)):
            files.write_json(path, {"a": bad})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [f.name for f in path.parent.iterdir()] == ["best.json"]


def test_replacing_writes_beside_and_then_renames(tmp_path):
    path = tmp_path / "front.csv"
    path.write_text("old")
    with files.replacing(path) as beside:
        beside.write_text("new")
        assert path.read_text() == "old"
        assert (beside.parent, beside.suffix) == (path.parent, ".csv")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [f.name for f in tmp_path.iterdir()] == ["front.csv"]


def test_digest_is_of_the_content_not_the_order():
    assert files.digest({"a": 1, "b": [1, 2]}) == files.digest({"b": [1, 2], "a": 1})
    assert len({files.digest(x) for x in ({"a": 1}, {"a": 2}, {"b": 1}, ["a", 1], "a", 1.0, 1, None)}) == 8
    assert len(files.digest({})) == 16


def test_a_further_name_is_short_for_options():
    registry = Registry("thing", "nowhere")
    registry._loaded = True

    @registry.register("plain", {"short": "", "two": "x=2"})
    @dataclass(frozen=True)
    class Plain:
        x: int = 1
        y: int = 0

    assert (
        registry.create("short") == Plain()
        and registry.create("two") == Plain(2)
        and registry.create("two:y=3") == Plain(2, 3)
    )
    assert registry.get("two") is Plain and registry.names() == ["plain"]
    assert registry.aliases() == {"short": "plain", "two": "plain:x=2"}
    with pytest.raises(UnknownNameError, match="two"):
        registry.create("twoo")
    with pytest.raises(ValueError, match="'short' of a thing is given twice"):
        registry.register("other", {"short": ""})(type("Other", (), {}))
    with pytest.raises(ValueError, match="short for 'plain:x=2'"):
        registry.register("two")(type("Two", (), {}))
