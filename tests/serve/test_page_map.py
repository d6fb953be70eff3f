"""The memory map: memories by source and time, bounded, walked with the keyboard, and what a question touched."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
from browsing import ask, connected, in_bank, open_page, route_too
from serving import add_animals, client, serving

from memspan.model.convert import LoadedModel

MARKUP = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def address(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("map")
    with serving(loaded, folder / "notes", folder / "empty", folder / "odd", max_new_tokens=4) as (_, address):
        with client(address) as http:
            add_animals(http)
            for n, day in enumerate(("2024-01-15", "2024-02-10", "2024-05-01", "2024-05-02")):
                memory = {
                    "id": f"letters/{n}",
                    "text": f"Letter {n} about a bridge.",
                    "date": day,
                    "title": f"Letter {n}",
                }
                http.post("/v1/memories", json=memory).raise_for_status()
            odd = {"id": f"{MARKUP}/1", "text": MARKUP, "title": MARKUP, "metadata": {"source": MARKUP}, "bank": "odd"}
            http.post("/v1/memories", json=odd).raise_for_status()
        yield address


@pytest.fixture(scope="module")
def still(browser: Any, address: str) -> Iterator[Any]:
    with open_page(browser, address) as page:
        yield connected(page)


def _grouped(page: Any, memories: list[dict[str, Any]], most: int = 24) -> dict[str, Any]:
    """`grouped`, with the numbers of memories in its cells."""
    return page.evaluate(
        """([memories, most]) => import("./static/grouping.js").then(({ grouped }) => {
          const { numSources, rows, columns, cells } = grouped(memories, most);
          const told = cells.map((cell) => [cell.row, cell.column, cell.memories.length]);
          return { numSources, rows, columns, cells: told };
        })""",
        [memories, most],
    )


def _memory(date: str | None, id: str = "a/b", **metadata: Any) -> dict[str, Any]:
    return {"id": id, "date": date, "added_at": "2026-11-30T07:00:00Z", "metadata": metadata}


@pytest.mark.parametrize(
    ("dates", "columns"),
    [
        ([], []),
        (["2026-03-01"], ["2026-03-01"]),
        ([None], ["2026-11-30"]),
        (["2026-03-01T23:59:59+05:00", "2026-03-02"], ["2026-03-01", "2026-03-02"]),
        (["2024-02-28", "2024-03-01"], ["2024-02-28", "2024-02-29", "2024-03-01"]),
        (["2025-12-31", "2026-02-01"], ["December 2025", "January 2026", "February 2026"]),
        (["2020-01-01", "2023-04-01"], [f"Q{q} {y}" for y in range(2020, 2024) for q in range(1, 5)][:14]),
        (["1999", "2010-07"], [str(year) for year in range(1999, 2011)]),
        (["1850-01-01", "2026-01-01"], [f"{year}s" for year in range(1850, 2030, 10)]),
        (["0900-01-01", "2026-01-01"], [f"{year}–{year + 99}" for year in range(900, 2100, 100)]),
        (["0001-01-01", "9999-12-31"], [f"{year}–{year + 999}" for year in range(0, 10000, 1000)]),
        (["not a date", "1970-01-01"], ["1970-01-01"]),
    ],
)
def test_time_is_cut_as_finely_as_the_columns_allow(still: Any, dates: list[str], columns: list[str]) -> None:
    found = _grouped(still, [_memory(date) for date in dates])
    assert found["columns"] == columns and sum(size for _, _, size in found["cells"]) == len(dates)


@pytest.mark.parametrize(
    ("id", "metadata", "source"),
    [
        ("folder/sub/a.md", {"path": "a.md"}, "folder"),
        ("/home/a.md", {}, "home"),
        ("a.md", {"path": "a.md"}, "Files"),
        ("memory-1", {}, "Single memories"),
        ("x/", {}, "Single memories"),
        ("turn/1", {"speaker": "user", "session": ""}, "Conversations"),
        ("folder/a", {"source": " Slack "}, "Slack"),
        ("folder/a", {"source": ["Slack"]}, "folder"),
        ("folder/a", {"source": ""}, "folder"),
        ("__proto__/a", {}, "__proto__"),
        ("https://example.org/a", {}, "https:"),
        ("🦔\n/a", {}, "🦔\n"),
    ],
)
def test_a_source_is_what_is_said_or_the_folder_or_the_kind(
    still: Any, id: str, metadata: dict[str, Any], source: str
) -> None:
    assert _grouped(still, [_memory("2026-01-01", id, **metadata)])["rows"] == [source]


def test_ten_thousand_memories_are_a_bounded_map(still: Any) -> None:
    seeded = random.Random(0)
    days = [
        f"{seeded.randint(1990, 2026)}-{seeded.randint(1, 12):02}-{seeded.randint(1, 28):02}" for _ in range(10_000)
    ]
    memories = [_memory(day, f"source{seeded.randint(0, 400)}/x") for day in days]
    found = _grouped(still, memories)
    assert (found["numSources"], len(found["rows"]), found["rows"][-1]) == (401, 12, "390 other sources")
    assert len(found["columns"]) <= 24
    assert len(found["cells"]) <= 12 * 24 and sum(size for _, _, size in found["cells"]) == 10_000
    assert found["cells"] == sorted(found["cells"])
    exact = _grouped(still, [_memory("2026-01-01", f"s{n}/x") for n in range(12)])
    assert len(exact["rows"]) == 12 and exact["rows"][-1] == "s9"


def test_it_is_walked_with_the_keyboard_and_leads_to_memories(browser: Any, address: str) -> None:
    with open_page(browser, address) as page:
        connected(page)
        page.get_by_role("link", name="Map", exact=True).press("Enter")
        circles = page.locator(".drawing svg[role=group] [role=button]")
        circles.first.wait_for()
        assert (
            page.title() == "Map · memspan"
            and "8 memories, from 2 sources" in page.locator("#map .about").first.inner_text()
        )
        assert page.locator(".drawing [tabindex='0']").count() == 1
        names = [circle.get_attribute("aria-label") or "" for circle in circles.all()]
        assert sum(int(re.findall(r"(\d+) memor", name)[0]) for name in names) == 8
        page.locator(".drawing [tabindex='0']").focus()

        def focused() -> str:
            return page.evaluate("document.activeElement.getAttribute('aria-label')")

        def pressed(key: str) -> str:
            page.keyboard.press(key)
            return focused()

        letters = [name for name in names if name.startswith("letters")]
        walked = {pressed("ArrowDown"), pressed("Home"), *[pressed("ArrowRight") for _ in letters], pressed("ArrowUp")}
        assert set(letters) <= walked | {pressed("ArrowDown")}
        page.keyboard.press("ArrowUp")
        page.keyboard.press("ArrowUp")  # to nothing
        page.keyboard.press("a")
        page.keyboard.press("ArrowDown")
        pressed("End")
        for key in ("Enter", " "):
            page.keyboard.press(key)
            assert page.locator(".listed h2").inner_text().startswith(focused().split(":")[0])
            assert page.locator(".drawing [aria-pressed=true]").count() == 1
        assert page.locator(".readout").first.inner_text() == focused()
        page.locator(".listed a").first.press("Enter")
        page.locator(".detail .document").wait_for()
        assert "Letter" in page.locator(".detail h2").inner_text()


def test_what_a_question_touched_is_marked(browser: Any, address: str) -> None:
    with open_page(browser, address) as page:
        connected(page)
        page.get_by_role("link", name="Map", exact=True).click()
        page.locator(".drawing svg").first.wait_for()
        assert not page.get_by_label("Show what this question touched").is_visible()
        page.get_by_role("link", name="Ask", exact=True).click()
        route_too(page)
        page.get_by_label("Passages, at most").fill("1")
        first = ask(page, "Where does the otter live?")
        ask(page, "What is letter 3 about?")
        first.get_by_role("link", name="Show on the map").click()
        choice = page.get_by_label("Show what this question touched")
        choice.wait_for()
        assert choice.locator("option").all_inner_texts()[1:] == [
            "What is letter 3 about?",
            "Where does the otter live?",
        ]
        assert choice.input_value() == "0"  # the newest
        choice.select_option("Where does the otter live?")
        read = page.locator(".drawing svg[role=group] .read")
        page.locator(".drawing .read[aria-label^=animals]").wait_for()
        assert read.count() == 1 and "1 read" in (read.get_attribute("aria-label") or "")
        assert page.get_by_text("Its answer was written from the texts of 1 memory").is_visible()
        read.click()
        assert page.locator(".listed a").first.inner_text() == "otter"  # what was read comes first
        choice.select_option("None")
        page.locator(".drawing .ring").first.wait_for(state="detached")
        in_bank(page, "odd")
        choice.wait_for(state="hidden")


def test_an_empty_bank_and_one_of_markup_are_shown(browser: Any, address: str) -> None:
    with open_page(browser, address) as page:
        in_bank(page, "empty")
        page.get_by_role("link", name="Map", exact=True).click()
        page.locator("#map").get_by_text("There are no memories here yet.").wait_for()
        in_bank(page, "odd")
        page.locator(".drawing svg [role=button]").click()
        assert page.locator(".listed a").inner_text() == MARKUP and page.locator("main img").count() == 0
        assert MARKUP in (page.locator(".drawing svg [role=button]").get_attribute("aria-label") or "")


def test_no_more_than_ten_thousand_are_fetched_and_drawn(browser: Any, address: str) -> None:
    asked: list[str] = []

    def page_of_many(route: Any) -> None:
        asked.append(route.request.url)
        start = len(asked) * 100
        data = [
            {**_memory(f"20{n % 30:02}-01-01", f"s{n % 50}/{n}"), "title": str(n), "text": None}
            for n in range(start, start + 100)
        ]
        if len(asked) == 3:  # the server has had too many requests
            error = {"message": "slow down", "type": "", "param": None, "code": "rate_limited"}
            return route.fulfill(status=429, headers={"Retry-After": "1"}, body=json.dumps({"error": error}))
        route.fulfill(status=200, body=json.dumps({"data": data, "has_more": True, "next_cursor": str(start)}))

    with open_page(browser, address) as page:
        connected(page)
        page.route("**/v1/memories?*", page_of_many)
        page.get_by_role("link", name="Map", exact=True).click()
        page.locator(".drawing svg [role=button]").first.wait_for()
        assert len(asked) == 101 and all("text=false" in url for url in asked)
        assert page.locator("#map *").count() < 1500
        page.locator(".drawing svg [role=button]").first.click()
        assert page.locator(".listed li").count() <= 51


def test_an_error_is_said_in_its_place(browser: Any, address: str) -> None:
    with open_page(browser, address) as page:
        connected(page)
        page.route("**/v1/memories?*", lambda route: route.fulfill(status=404, body="no JSON"))
        page.get_by_role("link", name="Map", exact=True).click()
        page.locator("#map .problem", has_text="The server answered 404").wait_for()
