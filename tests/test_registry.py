"""Registries: bad entries are named errors when they are registered or asked for, and harm nothing beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import pytest

from memspan import registry
from memspan.errors import MemspanError, PluginError, UnknownName
from memspan.registry import Registry


class Shape(Protocol):
    colour: str

    def area(self, scale: float) -> float: ...


class Line(Protocol):
    def length(self) -> float: ...


class Square:
    colour = "red"

    def area(self, scale: float) -> float:
        return scale


class Needy(Square):
    def __init__(self, side: float) -> None:
        self.side = side


@pytest.fixture
def shapes() -> Registry[Shape]:
    return Registry("shape", "memspan.testshapes", Shape)


def installed(folder: Path, name: str, points: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package beside memspan, as an installer leaves it."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(folder)
    registry._points.cache_clear()


@pytest.fixture(autouse=True)
def _scanned_anew() -> None:
    registry._points.cache_clear()


def test_an_entry_is_an_object_a_class_or_where_it_is_imported_from(shapes: Registry[Shape]) -> None:
    shapes.register("object", square := Square())
    shapes.register("class", Square)
    shapes.register("lazy", "test_registry:Square")
    assert list(shapes) == ["object", "class", "lazy"] and "lazy" in shapes and "none" not in shapes
    assert shapes["object"] is square
    assert isinstance(shapes["class"], Square) and shapes["class"] is shapes["class"]
    assert type(shapes["lazy"]).__name__ == "Square" and shapes["lazy"] is shapes["lazy"]


def test_an_unknown_name_is_refused_with_those_there_are(shapes: Registry[Shape]) -> None:
    shapes.register("a", Square())
    shapes.register("b", Square())
    with pytest.raises(UnknownName, match=r"^shape must be one of a, b, not 'c'$") as caught:
        shapes["c"]
    assert isinstance(caught.value, MemspanError) and isinstance(caught.value, ValueError)


def test_a_name_is_registered_once(shapes: Registry[Shape]) -> None:
    shapes.register("a", Square())
    with pytest.raises(PluginError, match="there is a shape 'a' already; register this one by another name"):
        shapes.register("a", Square())


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (object(), "lacks area, colour; give it what test_registry.Shape has"),
        (type("NoColour", (), {"area": lambda self, scale: scale})(), "lacks colour"),
        (type("NoMethod", (), {"colour": "red", "area": 3})(), "lacks area"),
        (Needy, "cannot be made .*side.*; register an object"),
    ],
)
def test_what_an_entry_lacks_is_named_when_it_is_registered(shapes: Registry[Shape], entry: object, said: str) -> None:
    with pytest.raises(PluginError, match=rf"the shape 'a' {said}"):
        shapes.register("a", entry)  # type: ignore[arg-type]
    assert list(shapes) == []


def test_one_of_several_protocols_is_enough() -> None:
    either: Registry[Shape | Line] = Registry("figure", "memspan.testfigures", Shape, Line)
    either.register("square", Square())
    either.register("line", type("Straight", (), {"length": lambda self: 1.0})())
    with pytest.raises(PluginError, match=r"lacks length; give it what .*Shape or .*Line has"):
        either.register("point", object())


def test_packages_add_entries_and_none_of_them_harms_another(
    shapes: Registry[Shape], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes.register("own", Square())
    shapes.register("claimed", Square())
    points = "good = test_registry:Square\nbroken = no_such_module:X\npoor = builtins:object\n"
    points += "claimed = test_registry:Square\ntwice = test_registry:Square\n"
    installed(tmp_path / "a", "apackage", f"[memspan.testshapes]\n{points}[memspan.others]\nelse = x:y\n", monkeypatch)
    installed(tmp_path / "b", "bpackage", "[memspan.testshapes]\ntwice = test_registry:Square\n", monkeypatch)
    assert set(shapes) == {"own", "claimed", "good", "broken", "poor", "twice"}
    assert shapes["good"].colour == "red" and shapes["own"].colour == "red"
    with pytest.raises(PluginError, match=r"'broken' cannot be imported from no_such_module:X of apackage \(.*mend or"):
        shapes["broken"]
    with pytest.raises(PluginError, match="the shape 'poor' lacks area, colour"):
        shapes["poor"]
    with pytest.raises(
        PluginError, match=r"several memspan.testshapes of the name 'claimed': test_registry.Square, .*of ap"
    ):
        shapes["claimed"]
    with pytest.raises(PluginError, match=r"'twice': .* of [ab]package, .* of [ab]package; leave out all but one"):
        shapes["twice"]
    with pytest.raises(UnknownName, match="own, claimed, "):
        shapes["else"]
