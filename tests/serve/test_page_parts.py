"""Parts of the page in a real browser: how it words what was found, what covers what, and what it says of files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from browsing import ask, connected, in_bank, open_memories, open_page
from serving import add_animals, client, serving

from memspan.model.convert import LoadedModel

PHONE = {"width": 360, "height": 640}
DESKTOP = {"width": 1280, "height": 800}
LOW = {"width": 700, "height": 340}


@pytest.fixture(scope="module")
def address(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("parts")
    with serving(loaded, folder / "notes", folder / "thrown", max_new_tokens=6) as (_, address):
        with client(address) as http:
            add_animals(http)
            add_animals(http, bank="thrown")
        yield address


@pytest.fixture(scope="module")
def still(browser: Any, address: str) -> Iterator[Any]:
    """A page that only lends its modules."""
    with open_page(browser, address) as page:
        yield connected(page)


def _call(page: Any, module: str, name: str, *values: Any) -> Any:
    return page.evaluate(
        "([file, name, values]) => import(file).then((module) => module[name](...values))",
        [f"./static/{module}.js", name, list(values)],
    )


@pytest.mark.parametrize(
    ("text", "title", "rest"),
    [
        ("Otter lives in Rome.", "Otter", "Otter lives in Rome."),
        ("Otters", "Otter", "Otters"),
        ("# Otter\n\nIt lives.", "Otter", "It lives."),
        ("Otter\r\n\r\nIt lives.", "Otter", "It lives."),
        ("  ### Otter \nIt lives.", "Otter", "It lives."),
        ("#Otter is a tag.", "Otter", "#Otter is a tag."),
        ("Otter", "Otter", ""),
        ("Otter", "", "Otter"),
        ("\n\nIt lives.", "  ", "\n\nIt lives."),
        ("水獭住在罗马。", "水獭", "水獭住在罗马。"),
        ("水獭\n住在罗马。", "水獭", "住在罗马。"),
        ("", "Otter", ""),
    ],
)
def test_a_title_is_left_out_only_where_it_is_a_line_of_its_own(still: Any, text: str, title: str, rest: str) -> None:
    assert _call(still, "format", "withoutTitle", text, title) == rest


@pytest.mark.parametrize(
    ("question", "text", "shared"),
    [
        ("Where does the otter live?", "The otter lives in Rome.", ["otter"]),
        ("Where do otters dwell?", "OTTERS dwell, otters!", ["otters", "dwell"]),
        ("cat", "The cat sat.", ["cat"]),
        ("Is it?", "It is.", ["Is", "it"]),
        ("水獭住在哪里", "水獭住在罗马。", ["水獭"]),
        ("Wo wohnt Jörg Müßig?", "Jörg Müßig wohnt in Köln.", ["wohnt", "Jörg", "Müßig"]),
        ("room 42", "42", ["42"]),
        ("🦔?", "🦔", []),
        ("", "", []),
    ],
)
def test_shared_words_are_those_of_the_question(still: Any, question: str, text: str, shared: list[str]) -> None:
    found = _call(still, "closest", "sharedWords", question, text)
    assert [word for word in found if word in shared] == shared and len(found) <= len(shared) + 1


@pytest.mark.parametrize(
    ("score", "best", "words", "weak"),
    [
        (0.5, 0.5, "best match", False),
        (0.45, 0.5, "nearly as good a match", False),
        (0.25, 0.5, "fair match", False),
        (0.2, 0.5, "weak match", True),
        (0.05, 0.05, "best match", True),
        (0.0, 0.0, None, False),
        (-0.5, -0.1, None, False),
    ],
)
def test_how_well_something_fits_is_said_in_words(
    still: Any, score: float, best: float, words: str | None, weak: bool
) -> None:
    assert _call(still, "format", "fit", score, best) == words
    assert _call(still, "format", "isWeak", score, best, False) is weak
    assert _call(still, "format", "isWeak", best, best, True) is False


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.pdf", "the command reads this: memspan add"),
        ("b.MD.GZ", "the command reads this: memspan add"),
        ("deep/c.zip", "the command reads this: memspan add"),
        ("d.py", "the command reads this: memspan add"),
        ("e.png", "memspan add --ocr"),
        ("f.exe", "neither the page nor the command reads .exe files"),
        ("g.mp3", "neither the page nor the command reads .mp3 files"),
        ("h.doc", "neither the page nor the command reads .doc files"),
        ("i.<b>", "neither the page nor the command reads .<b> files"),
        ("Makefile", "without an extension is not read"),
        ("deep.pdf/plain", "without an extension is not read"),
    ],
)
def test_of_a_file_it_is_said_what_really_reads_it(still: Any, name: str, reason: str) -> None:
    read = """async (name) => {
      const { memoriesOf } = await import("./static/files.js");
      const status = await (await fetch("v1/status")).json();
      return memoriesOf([{ path: name, file: new File(["text"], name) }], status);
    }"""
    found = still.evaluate(read, name)
    assert found["memories"] == [] and [one["source"] for one in found["skipped"]] == [name]
    assert reason in found["skipped"][0]["reason"]


def test_what_hardly_fits_a_search_is_set_apart(browser: Any, address: str) -> None:
    with open_page(browser, address) as page:
        connected(page)
        open_memories(page)
        page.get_by_label("Search memories").fill("The otter lives in Rome")
        page.locator(".tools .about", has_text="1 memory found, best first").wait_for()
        shown = page.locator(".memory-list a:visible")
        assert [one.inner_text().split("\n")[0] for one in shown.all()] == ["otter"]
        assert "best match" in shown.inner_text() and "score" not in shown.inner_text()
        shown.focus()
        page.keyboard.press("ArrowDown")  # to nothing: what is behind the line is not shown
        assert page.evaluate("document.activeElement.dataset.id") == "animals/otter"
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.get_by_text("less than half as well as the best").wait_for()
        assert shown.count() == 4 and "weak match" in shown.last.inner_text()


def test_a_snippet_keeps_the_words_of_the_title(browser: Any, address: str) -> None:
    with open_page(browser, address) as page, client(address) as http:
        memory = {"id": "ann", "title": "Ann Lee", "text": "Ann Lee keeps bees.", "bank": "thrown"}
        http.post("/v1/memories", json=memory).raise_for_status()
        in_bank(page, "thrown")
        open_memories(page)
        assert page.locator("a[data-id=ann] .snippet").inner_text() == "Ann Lee keeps bees."
        http.delete("/v1/memories/ann", params={"bank": "thrown"}).raise_for_status()


@pytest.mark.parametrize("size", [DESKTOP, PHONE, LOW], ids=["desktop", "phone", "low"])
def test_the_ask_box_covers_nothing(browser: Any, address: str, size: dict[str, int]) -> None:
    with open_page(browser, address, viewport=size) as page:
        connected(page)
        exchange = ask(page, "Where does the otter live?")
        exchange.locator(".inspector summary").click()
        exchange.get_by_text("Time:").wait_for()
        for opened in (False, True):
            if opened:
                page.locator(".composer summary").click()
            for place in exchange.locator(".passage, .inspector section").all():
                place.scroll_into_view_if_needed()
                hit = place.evaluate(
                    """(node) => {
                      const box = node.getBoundingClientRect();
                      const composer = document.querySelector(".composer").getBoundingClientRect();
                      const middle = [box.x + box.width / 2, box.y + Math.min(box.height / 2, 10)];
                      const found = document.elementFromPoint(...middle);
                      const fits = composer.height < innerHeight || innerHeight < 400;
                      return [found !== null && node.contains(found), fits];
                    }"""
                )
                assert hit == [True, True], place.inner_text()


def test_one_notice_stands_at_a_time_and_takes_back_all_that_was_deleted(browser: Any, address: str) -> None:
    with open_page(browser, address, viewport=PHONE) as page, client(address) as http:
        in_bank(page, "thrown")
        open_memories(page)
        toast = page.locator(".toast")
        for left, told in ((3, "Deleted “otter”"), (2, "Deleted 2 memories"), (1, "Deleted 3 memories")):
            page.locator(".memory-list a").first.click()
            page.get_by_role("button", name="Delete", exact=True).click()
            toast.get_by_text(told).wait_for()
            assert toast.count() == 1
            page.locator(".tools .about", has_text=re.compile(f"^{left} memor")).wait_for()
        floor = page.locator("main").bounding_box()
        assert floor["y"] + floor["height"] <= toast.bounding_box()["y"]  # it stands below the list, not over it
        toast.get_by_role("button", name="Undo").click()
        toast.get_by_text("Restored").wait_for()
        stored = http.get("/v1/memories", params={"bank": "thrown"}).json()["data"]
        assert len(stored) == 4 and toast.count() == 1
        toast.get_by_role("button", name="Dismiss").click()
        assert toast.count() == 0
