"""The web page in a real browser before a real server: what a person does, with mouse and keyboard."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import add_by_paste, ask, connected, in_bank, open_memories, open_page, route_too
from serving import ANIMALS, add_animals, client, serving

from memspan.model.convert import LoadedModel, load
from memspan.serve.keys import KeyFile

SCRIPT = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\"> The mole digs."
# Longer than one document of a bank, and before its last words characters that are two units of UTF-16.
LONG = "🦔" * 40 + " The hedgehog sleeps in winter under dry leaves. " * 60 + "The vole lives in Turku."


@pytest.fixture(scope="module")
def address(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the module's own: its tests change the banks. Each test has a bank or words of its own."""
    folder = tmp_path_factory.mktemp("browsed")
    with serving(loaded, folder / "notes", folder / "edited", folder / "imported", max_new_tokens=6) as (_, address):
        with client(address) as http:
            add_animals(http)
            http.post("/v1/memories", json={"id": "long", "text": LONG, "title": "Vole"}).raise_for_status()
        yield address


def test_an_answer_comes_with_its_evidence_and_how_it_was_found(browser: Any, address: str) -> None:
    with open_page(browser, address) as page:
        connected(page)
        route_too(page)
        page.get_by_label("Tokens, at most").fill("6")
        exchange = ask(page, "Where does the otter live?")
        assert exchange.locator(".answer").get_attribute("aria-busy") == "false"
        first = exchange.locator(".passage").first
        assert first.locator(".title").inner_text() == "otter"
        assert first.locator("mark").inner_text() == "The otter lives in Rome."
        about = first.locator(".about").inner_text()
        assert about.startswith("best match · ") and "shares “otter”, “live” with the question" in about
        assert not re.search(r"score|layer|round|character", about)
        exchange.get_by_text("How this was found").click()
        grid = exchange.get_by_role("grid")
        grid.wait_for()
        figures = (
            exchange.locator(".inspector section", has=page.locator("h4", has_text="Passages"))
            .locator("li")
            .first.inner_text()
        )
        assert re.search(r"^otter\s+score [\d.]+ · round 1 · attended to by \d layers? · characters 0–24$", figures)
        # The MSA layers of the tiny model.
        assert [row.inner_text() for row in grid.locator("tbody th").all()] == ["2", "3"]
        read = [title.inner_text() for title in exchange.locator(".passage .title").all()]
        assert sorted(read) == sorted(grid.locator("thead th.read").all_text_contents())
        scored = [cell.inner_text() for cell in grid.locator("td.routed .unseen").all()]
        assert scored and all(-1.01 <= float(text) <= 1.01 for text in scored)
        heading = exchange.locator("h4").first.inner_text()
        assert re.search(r"^Time: .*, [\d,]+ tokens read, 6 written$", heading)
        assert {"Finding", "Reading", "Writing"} <= set(exchange.locator(".legend dt").all_text_contents())


def test_the_map_of_routing_is_walked_with_the_arrow_keys(browser: Any, address: str) -> None:
    with open_page(browser, address) as page:
        connected(page)
        route_too(page)
        exchange = ask(page, "Where does the heron live?")
        exchange.locator(".inspector summary").press("Enter")
        cells = exchange.locator("tbody tr").first.locator("td")
        cells.first.focus()
        told = [exchange.locator(".readout").inner_text()]
        for key in ("ArrowRight", "ArrowDown", "Home"):
            page.keyboard.press(key)
            told.append(exchange.locator(".readout").inner_text())
        assert all(text.startswith("Layer 2 ") for text in told[:2]) and told[0] != told[1]
        assert all(text.startswith("Layer 3 ") for text in told[2:]) and told[2] != told[3]
        assert exchange.locator("td[tabindex='0']").count() == 1


def test_what_was_read_is_shaded_where_it_stands_in_its_memory(browser: Any, address: str) -> None:
    with open_page(browser, address) as page:
        connected(page)
        exchange = ask(page, "Where does the vole live, in Turku?")
        assert exchange.locator(".passage mark").first.text_content() == "The vole lives in Turku."
        exchange.locator(".passage .title").first.click()
        reader = page.get_by_role("dialog")
        reader.locator(".document").wait_for()
        assert reader.locator(".document").text_content() == LONG.strip()
        shaded = reader.locator(".shaded").text_content()
        assert shaded and shaded.endswith("The vole lives in Turku.") and len(shaded) < len(LONG) / 2
        assert reader.locator("mark").text_content() == "The vole lives in Turku."
        page.keyboard.press("Escape")
        page.locator("dialog").wait_for(state="detached")


def test_an_answer_can_be_stopped_and_asked_again(browser: Any, loaded: LoadedModel, tmp_path: Path) -> None:
    with (
        serving(loaded, tmp_path / "notes", max_new_tokens=4000) as (server, address),
        client(address) as http,
        open_page(browser, address) as page,
    ):
        add_animals(http)
        page.reload()
        connected(page)
        page.locator(".composer summary").click()
        page.get_by_label("Tokens, at most").fill("4000")
        box = page.get_by_role("textbox", name="Question")
        box.fill("Where does the lynx live?")
        box.press("Enter")
        page.locator(".answer:not(:empty)").wait_for()
        page.get_by_role("button", name="Stop").click()
        page.get_by_text("Stopped.").wait_for()
        engine = server.config.app.state.service.engine  # type: ignore[union-attr]
        page.get_by_label("Tokens, at most").fill("3")
        page.get_by_role("button", name="Ask again").click()
        page.locator(".evidence").wait_for()
        assert page.locator(".exchange").count() == 1 and engine.num_running == 0


def test_memories_are_added_edited_deleted_and_restored_and_are_never_markup(browser: Any, address: str) -> None:
    with open_page(browser, address) as page, client(address) as http:
        in_bank(page, "edited")
        open_memories(page)
        page.get_by_text("No memories yet").wait_for()
        add_by_paste(page, SCRIPT, "<b>Mole</b>")
        shown = page.locator(".detail")
        shown.get_by_role("heading", name="<b>Mole</b>").wait_for()
        assert shown.locator(".document").text_content() == SCRIPT
        page.locator(".memory-list a").wait_for()  # one, or it is an error
        exchange_of_script = _asked_on_the_other_page(page)
        assert exchange_of_script == (SCRIPT, "<b>Mole</b>")
        assert page.title() == "Ask · memspan" and page.locator("main b, main img, main script").count() == 0

        open_memories(page)
        page.locator(".memory-list a").click()
        page.get_by_role("button", name="Edit", exact=True).click()
        shown.get_by_label("Text").fill("The mole digs in Lima.")
        shown.get_by_label("Metadata").fill("[1]")
        shown.get_by_role("button", name="Save").click()
        assert "JSON object" in shown.get_by_role("alert").inner_text()
        shown.get_by_label("Metadata").fill('{"n": 1}')
        shown.get_by_label("Metadata").press("Control+Enter")
        shown.locator(".document", has_text="The mole digs in Lima.").wait_for()
        (before,) = http.get("/v1/memories", params={"bank": "edited"}).json()["data"]
        assert (before["text"], before["metadata"]) == ("The mole digs in Lima.", {"n": 1})

        shown.get_by_role("button", name="Delete").click()
        page.get_by_text("No memories yet").wait_for()
        assert http.get("/v1/memories", params={"bank": "edited"}).json()["data"] == []
        page.locator(".tools .about", has_text="0 memories, oldest first").wait_for()
        page.get_by_role("button", name="Undo").click()
        page.locator(".memory-list a").wait_for()
        (after,) = http.get("/v1/memories", params={"bank": "edited"}).json()["data"]
        assert {name: after[name] for name in ("id", "title", "text", "metadata")} == {
            name: before[name] for name in ("id", "title", "text", "metadata")
        }
        assert after["date"] == before["added_at"]


def _asked_on_the_other_page(page: Any) -> tuple[str, str]:
    """Ask for the only memory; its text in the reader, and its name in the evidence."""
    page.get_by_role("link", name="Ask", exact=True).click()
    passage = ask(page, "What digs?").locator(".passage").first
    passage.locator(".title").click()
    text = page.get_by_role("dialog").locator(".document").text_content()
    page.keyboard.press("Escape")
    return text, passage.locator(".title").inner_text()


def test_memories_are_searched_and_filtered(browser: Any, address: str) -> None:
    with open_page(browser, address) as page:
        connected(page)
        open_memories(page)
        names = page.locator(".memory-list strong")
        assert names.all_text_contents() == [*ANIMALS, "Vole"]
        page.get_by_label("Search memories").fill("Quito")
        page.locator(".tools .about", has_text="found, best first").wait_for()
        assert names.first.inner_text() == "lynx"
        page.get_by_label("Search memories").fill("")
        page.locator(".tools .about", has_text="oldest first").wait_for()
        page.get_by_text("Filter", exact=True).click()
        tools = page.locator(".tools")
        tools.get_by_role("button", name="Add a condition").click()
        for label, value in (("Field", "n"), ("Value", "2")):
            tools.get_by_label(label).fill(value)
        tools.get_by_label("Comparison").select_option(">=")
        tools.get_by_role("button", name="Apply").click()
        page.locator(".tools .about", has_text="Filtered").wait_for()
        assert names.all_text_contents() == list(ANIMALS)[2:]
        page.locator(".memory-list a").first.focus()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        page.locator(".detail h2", has_text="newt").wait_for()


def test_files_are_added_and_what_cannot_be_read_is_named(browser: Any, address: str, tmp_path: Path) -> None:
    lines = [{"id": f"r{n}", "text": f"number {n}", "kind": "record"} for n in range(40)]
    files = {
        "badger.md": b"# The badger\n\nIt lives in Gdansk.",
        "records.jsonl": b"\n".join(json.dumps(line).encode() for line in lines) + b'\n{"title": "no text"}',
        "paper.pdf": b"%PDF-1.4",
        "latin.txt": b"caf\xe9",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with open_page(browser, address) as page, client(address) as http:
        in_bank(page, "imported")
        open_memories(page)
        page.get_by_role("button", name="Add memories").click()
        page.locator("dialog input[type=file]").set_input_files([tmp_path / name for name in files])
        dialog = page.get_by_role("dialog")
        add = dialog.get_by_role("button", name="Add 41 memories")
        add.wait_for()
        assert [text.split(":")[0] for text in dialog.locator(".skipped li").all_text_contents()] == [
            "records.jsonl#41",
            "paper.pdf",
            "latin.txt",
        ]
        add.click()
        page.get_by_text("41 added").wait_for()
        stored = http.get("/v1/memories", params={"bank": "imported", "limit": 100}).json()["data"]
        assert len(stored) == 41 and stored[0]["title"] == "The badger" and stored[0]["id"] == "badger.md"
        assert stored[1]["metadata"] == {"kind": "record"}
        page.locator(".memory-list li:nth-child(30)").wait_for()
        assert page.locator(".memory-list a").count() == 30
        page.get_by_role("button", name="Show more").click()
        page.locator(".memory-list li:nth-child(41)").wait_for()


def test_a_key_is_asked_for_and_kept_in_the_tab_alone(browser: Any, loaded: LoadedModel, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    _, reader = keys.add("reader", ("read",), ("team",))
    with serving(loaded, tmp_path / "notes", keys=keys) as (_, address), open_page(browser, address) as page:
        dialog = page.get_by_role("dialog")
        for key in ("msk_wrong", reader):
            dialog.get_by_label("API key").fill(key)
            dialog.get_by_role("button", name="Continue").click()
            if key != reader:
                page.get_by_text("did not take this key").wait_for()
        connected(page)
        assert page.evaluate("Object.values(sessionStorage)") == [reader]
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        open_memories(page)
        assert not page.get_by_role("button", name="Add memories").is_visible()  # it may read only
        page.locator("#place").click()
        assert page.get_by_label("Namespace").input_value() == "team"
        page.get_by_role("button", name="Forget the API key").click()
        page.get_by_label("API key").wait_for()
        assert page.evaluate("sessionStorage.length") == 0


def test_nothing_is_wider_than_a_phone_and_dark_is_dark(browser: Any, address: str) -> None:
    phone = {"viewport": {"width": 360, "height": 700}, "color_scheme": "dark"}
    with open_page(browser, address, **phone) as page:
        connected(page)
        route_too(page)
        exchange = ask(page, "Where does the newt live?")
        exchange.locator(".inspector summary").click()
        exchange.get_by_role("grid").wait_for()
        assert _width(page) <= 360
        open_memories(page)
        page.locator(".memory-list a").first.click()
        page.locator(".detail .document").wait_for()
        assert _width(page) <= 360 and not page.locator(".list-pane").is_visible()
        page.get_by_text("← All memories").click()
        page.locator(".list-pane").wait_for()
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(map(int, re.findall(r"\d+", background))) < 60
        page.evaluate("localStorage.setItem('memspan.theme', 'light')")
        page.reload()
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert min(map(int, re.findall(r"\d+", background))) > 200


def _width(page: Any) -> int:
    return page.evaluate("document.documentElement.scrollWidth")


def test_spans_count_characters_not_units(browser: Any, address: str) -> None:
    with open_page(browser, address) as page:
        cut = "import('./static/format.js').then(({ cut }) => cut('a🦔b🦔c', { start: %d, end: %d }))"
        assert page.evaluate(cut % (1, 3)) == ["a", "🦔b", "🦔c"]
        assert page.evaluate(cut % (3, 5)) == ["a🦔b", "🦔c", ""]
        assert page.evaluate(cut % (5, 5)) == ["a🦔b🦔c", "", ""]


def test_the_marked_sentence_is_the_one_with_the_rarer_words(browser: Any, address: str) -> None:
    text = "# Ann Lee\\n\\nAnn Lee is an engineer. Ann joined in May. Her sheepdog is called Mabli, and runs."
    with open_page(browser, address) as page:
        closest = "import('./static/closest.js').then(({ aroundClosest }) => aroundClosest('%s', '%s', 'Ann Lee'))"
        found = page.evaluate(closest % (text, "What is the name of the sheepdogs of Ann Lee?"))
        assert found["inside"] == "Her sheepdog is called Mabli, and runs."
        assert found["before"].endswith("in May. ") and found["after"] == ""
        assert page.evaluate(closest % (text, "Who?")) is None


@pytest.mark.slow
@pytest.mark.real
def test_the_real_model_knows_what_was_added_and_not_what_was_deleted(
    browser: Any, real_checkpoint: Path, tmp_path: Path
) -> None:
    question = "What is the name of Tamsin Okoro's boat?"
    with serving(load(real_checkpoint), tmp_path / "notes") as (_, address), client(address) as http:
        add_animals(http)
        with open_page(browser, address) as page:
            connected(page)
            page.locator(".composer summary").click()
            page.get_by_label("Tokens, at most").fill("24")
            for known in (False, True, False):
                exchange = ask(page, question)
                told = exchange.locator(".answer").inner_text(), exchange.locator(".evidence").inner_text()
                assert ["Periwinkle" in text for text in told] == [known, known], told
                page.get_by_role("button", name="New conversation").click()
                open_memories(page)
                if known:
                    page.get_by_text("Tamsin Okoro keeps").click()
                    page.get_by_role("button", name="Delete").click()
                    page.get_by_text("Deleted").wait_for()
                else:
                    add_by_paste(page, "Tamsin Okoro keeps a small wooden boat called Periwinkle in Falmouth.")
                page.get_by_role("link", name="Ask", exact=True).click()
