"""The page's settings, links to questions, what it shows of an empty bank, and memories as a file."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

import pytest
from browsing import ask, connected, in_bank, open_memories, open_page
from chat_server import chat_server, say
from serving import add_animals, client, serving

from memspan.bank.lines import read_exported
from memspan.generate.endpoint import Endpoint
from memspan.model.convert import LoadedModel
from memspan.serve.keys import KeyFile

SETTINGS = ".composer summary"
NOT_ALLOWED = "Object.defineProperty(navigator, 'clipboard', { value: undefined })"


@pytest.fixture(scope="module")
def address(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("settings")
    banks = [folder / name for name in ("notes", "empty", "copied", "more")]
    with serving(loaded, *banks, max_new_tokens=6) as (_, address):
        with client(address) as http:
            add_animals(http)
            add_animals(http, bank="more", namespace="team")
        yield address


def _link(page: Any, exchange: Any) -> str:
    """The link of a question, of a browser that may not use the clipboard."""
    page.evaluate(NOT_ALLOWED)
    exchange.get_by_role("button", name="Copy link").click()
    link = page.get_by_role("dialog").get_by_label("Link").input_value()
    page.keyboard.press("Escape")
    return link


def _box(page: Any) -> str:
    return page.get_by_role("textbox", name="Question").input_value()


def test_settings_are_kept_in_the_browser_and_only_what_is_offered_is_chosen(browser: Any, address: str) -> None:
    with open_page(browser, address) as page:
        connected(page)
        assert page.evaluate("localStorage.length") == 0
        page.locator(SETTINGS).click()
        page.get_by_label("Find passages by").select_option("hybrid")
        page.get_by_label("Rounds, at most").fill("2")
        page.get_by_label("Passages, at most").fill("3")
        assert not page.get_by_label("Answers are written by").is_visible()  # there is no other model here
        page.get_by_label("Tokens, at most").focus()
        page.reload()
        connected(page)
        page.locator(SETTINGS).click()
        values = [page.get_by_label(f"{name}, at most").input_value() for name in ("Rounds", "Passages", "Tokens")]
        assert values == ["2", "3", ""] and page.get_by_label("Find passages by").input_value() == "hybrid"
        with page.expect_request("**/v1/chat/completions") as asked:
            ask(page, "Where does the otter live?")
        sent = asked.value.post_data_json["memspan"]
        assert (sent["selector"], sent["max_documents"], sent["rounds"]) == ("hybrid", 3, 2)


@pytest.mark.parametrize(
    "kept",
    ["{", "null", "7", "[]", '{"selector": "nothing", "rounds": "many"}', '{"rounds": 99, "tokens": -1}', '{"x": {}}'],
)
def test_what_was_kept_and_cannot_be_used_is_as_usual(browser: Any, address: str, kept: str) -> None:
    with open_page(browser, address) as page:
        connected(page)
        page.evaluate("(kept) => localStorage.setItem('memspan.settings', kept)", kept)
        page.reload()
        connected(page)
        with page.expect_request("**/v1/chat/completions") as asked:
            ask(page, "Where does the otter live?")
        sent = asked.value.post_data_json
        assert (
            not {"selector", "rounds", "max_documents", "own_model"} & set(sent["memspan"]) and "max_tokens" not in sent
        )


@pytest.mark.parametrize(
    "question",
    [
        "Where does the otter live?",
        "a&b=c#d?e/f%20+g",
        "Wo ist die 🦔 heute?\nZeile 2",
        "<b>x</b>&bank=more",
        "#/memories",
    ],
)
def test_a_question_is_shared_by_its_address_and_asked_by_whoever_opens_it(
    browser: Any, address: str, question: str
) -> None:
    with open_page(browser, address) as page:
        connected(page)
        page.locator(SETTINGS).click()
        page.get_by_label("Rounds, at most").fill("1")
        page.get_by_role("button", name="Add a condition").click()
        page.get_by_label("Field").fill("n")
        page.get_by_label("Comparison").select_option(">=")
        page.get_by_label("Value").fill("1")
        page.locator("#ask").get_by_label("Known by").fill("2040-01-01")
        link = _link(page, ask(page, question))
    assert link.startswith(address + "/#/ask?") and parse_qs(link.split("#/ask?", 1)[1])["q"] == [question]
    with open_page(browser, link) as page:
        connected(page)
        page.get_by_text("This question comes from a link").wait_for()
        assert _box(page) == question and page.locator(".exchange").count() == 0
        assert page.evaluate("localStorage.length") == 0  # what a link says is kept nowhere
        with page.expect_request("**/v1/chat/completions") as asked:
            page.keyboard.press("Enter")
        sent = asked.value.post_data_json
        assert sent["memspan"]["where"] == {"n": {">=": 1}} and sent["memspan"]["as_of"] == "2040-01-01"
        assert (sent["memspan"]["rounds"], sent["remember"]) == (1, False)
        page.locator(".exchange .evidence").wait_for()
        page.get_by_label("Passages, at most").fill("2")
        page.get_by_label("Passages, at most").press("Tab")
        assert json.loads(page.evaluate("localStorage.getItem('memspan.settings')")) == {"documents": "2"}


def test_a_link_goes_to_its_bank_and_namespace_also_while_another_memory_is_open(browser: Any, address: str) -> None:
    with open_page(browser, f"{address}/#/memories/animals%2Fotter") as page:
        page.locator(".detail .document").wait_for()
        page.evaluate("location.hash = '#/ask?q=Where%3F&bank=more&namespace=team'")
        page.get_by_text("This question comes from a link").wait_for()
        assert page.locator("#place-name").inner_text() == "more" and "#/ask?" in page.url and _box(page) == "Where?"
        page.locator("#place").click()
        assert page.get_by_label("Namespace").input_value() == "team"


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("q=Who&bank=elsewhere", "asks the bank “elsewhere”, which this server does not have"),
        ("q=Who&namespace=a%00b", "asks the namespace “a\0b”, which is none"),
        ("q=Who&namespace=" + "n" * 300, "which is none"),
        ("q=Who&where=%7B", "The filter in this link cannot be read"),
        ("q=Who&where=[1]", "cannot be shown here"),
        ("q=Who&where=" + quote('{"n": {"in": [1]}}'), "cannot be shown here"),
        ("q=Who&as_of=yesterday", "cannot be shown here"),
        ("q=" + quote("<img src=x onerror=alert(1)>"), "comes from a link"),
        ("q=Who&selector=nothing&rounds=99", "comes from a link"),
    ],
)
def test_a_link_that_cannot_be_followed_says_why(browser: Any, address: str, query: str, told: str) -> None:
    with open_page(browser, f"{address}/#/ask?{query}") as page:
        connected(page)
        page.locator(".composer").get_by_text(told).wait_for()
        assert page.locator("main img").count() == 0 and page.locator(".exchange").count() == 0


@pytest.mark.parametrize("query", ["", "q=", "q=%20", "x=1", "=", "&&", "q"])
def test_an_address_without_a_question_is_an_empty_box(browser: Any, address: str, query: str) -> None:
    with open_page(browser, f"{address}/#/ask?{query}") as page:
        connected(page)
        assert _box(page) == "" and page.locator(".composer .note, .composer .problem").count() == 0


def test_no_key_is_in_a_link_and_whoever_opens_it_is_asked_for_one(
    browser: Any, loaded: LoadedModel, tmp_path: Path
) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    _, key = keys.add("writer", ("write",), ("team", "secret"))
    _, other = keys.add("other", ("read",), ("team",))
    with serving(loaded, tmp_path / "notes", keys=keys, max_new_tokens=4) as (_, address):
        with client(address, key) as http:
            add_animals(http, namespace="secret")

        def give(page: Any, key: str) -> None:
            page.get_by_label("API key").fill(key)
            page.get_by_role("button", name="Continue").click()
            connected(page)

        with open_page(browser, address) as page:
            give(page, key)
            page.get_by_text("There are memories elsewhere").wait_for()
            page.get_by_role("button", name="Namespace secret").click()
            page.get_by_text("Answers come from 4 memories").wait_for()
            link = _link(page, ask(page, "Where does the otter live?"))
            assert key not in link and "msk_" not in link and "namespace=secret" in link
        with open_page(browser, link) as page:
            give(page, other)
            page.get_by_text("your key may not enter").wait_for()
            page.get_by_role("heading", name="There are no memories here yet").wait_for()
            page.get_by_text("Your key may read.").wait_for()
            assert page.get_by_role("button", name="Add memories").count() == 0


def test_who_writes_the_answer_is_chosen_where_there_are_two(browser: Any, loaded: LoadedModel, tmp_path: Path) -> None:
    with chat_server() as chat:
        chat.plays = [say("The otter lives in Rome.")]
        endpoint = Endpoint(chat.url, "big", room=8192)
        with serving(loaded, tmp_path / "notes", answerer=endpoint, max_new_tokens=4) as (_, address):
            with client(address) as http:
                add_animals(http)
                assert http.get("/v1/status").json()["answerer"] == "big"
            with open_page(browser, address) as page:
                connected(page)
                assert "The otter lives in Rome." in ask(page, "Where?").locator(".answer").inner_text()
                page.locator(SETTINGS).click()
                page.get_by_label("Answers are written by").select_option("the model of the bank")
                answer = ask(page, "Where does the otter live?").locator(".answer").inner_text()
                assert "Rome" not in answer and len(chat.asked) == 1


def test_memories_are_saved_as_a_file_that_the_command_and_the_page_read(
    browser: Any, address: str, tmp_path: Path
) -> None:
    texts = {"plain": "One.", "🦔/é\n?#": 'Lines\r\nand \u2028 and "quotes" and \\ and 🦔.', "x" * 300: "Long id."}
    with open_page(browser, address) as page, client(address) as http:
        for at, (id, text) in enumerate(texts.items()):
            memory = {
                "id": id,
                "text": text,
                "title": f"T{at}",
                "metadata": {"n": at, "in": {"a": [1]}},
                "bank": "more",
            }
            retention = {"expires": "2090-01-01", "pinned": True} if at == 1 else {"date": "2026-03-01"}
            http.post("/v1/memories", json={**memory, **retention}).raise_for_status()
        in_bank(page, "more")
        open_memories(page)
        page.get_by_role("button", name="Export").click()
        with page.expect_download() as saved:
            page.get_by_role("button", name="Save the file").click()
        assert saved.value.suggested_filename == "more-default.jsonl"
        saved.value.save_as(tmp_path / "more.jsonl")
        page.keyboard.press("Escape")
        lines = (tmp_path / "more.jsonl").read_text(encoding="utf-8")
        documents = [document for _, document in read_exported(io.StringIO(lines, newline="\n"))]
        assert {document.external_id: document.text for document in documents} == texts
        assert [(document.expires, document.pinned) for document in documents][1] == ("2090-01-01", True)
        former = {**json.loads(lines.split("\n")[0]), "external_id": "former", "superseded_at": "2026-01-01T00:00:00"}
        with (tmp_path / "more.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(former))

        in_bank(page, "copied")
        open_memories(page)
        page.get_by_role("button", name="Add memories").click()
        page.locator("dialog input[type=file]").set_input_files(tmp_path / "more.jsonl")
        assert "a former version" in page.locator("dialog .skipped").inner_text()
        page.get_by_role("button", name="Add 3 memories").click()
        page.get_by_text("3 added").wait_for()
        kept = ("id", "text", "title", "metadata", "expires", "pinned")
        both = [http.get("/v1/memories", params={"bank": bank}).json()["data"] for bank in ("more", "copied")]
        assert [[one[name] for name in kept] for one in both[0]] == [[one[name] for name in kept] for one in both[1]]


def test_an_export_takes_what_the_filter_shows_and_says_where_there_is_nothing(browser: Any, address: str) -> None:
    with open_page(browser, address) as page:
        connected(page)
        open_memories(page)
        page.get_by_text("Filter", exact=True).click()
        tools = page.locator(".tools")
        tools.get_by_role("button", name="Add a condition").click()
        tools.get_by_label("Field").fill("n")
        tools.get_by_label("Value").fill("2")
        page.get_by_role("button", name="Export").click()
        page.get_by_text("1 memory that match the filter.").wait_for()
        page.keyboard.press("Escape")
        in_bank(page, "empty")
        tools.get_by_role("button", name="Remove this condition").click()
        page.get_by_role("button", name="Export").click()
        page.get_by_text("There is nothing to export.").wait_for()


def test_an_empty_bank_says_what_to_do_first_and_where_there_is_something(browser: Any, address: str) -> None:
    with open_page(browser, address) as page, client(address) as http:
        in_bank(page, "empty")
        page.get_by_role("heading", name="There are no memories here yet").wait_for()
        welcome = page.locator(".welcome")
        assert "memspan add empty FOLDER" in welcome.inner_text()
        names = welcome.get_by_role("button").all_inner_texts()
        assert names[0] == "Add memories" and "Bank notes" in names and "Bank empty" not in names
        welcome.get_by_role("button", name="Add memories").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Text").fill("The first memory.")
        dialog.get_by_role("button", name="Add", exact=True).click()
        page.locator(".memory-list a").wait_for()
        page.get_by_role("link", name="Ask", exact=True).click()
        page.get_by_text("Answers come from 1 memory in empty").wait_for()
        for memory in http.get("/v1/memories", params={"bank": "empty"}).json()["data"]:
            http.delete(f"/v1/memories/{quote(memory['id'], safe='')}", params={"bank": "empty"})
        page.reload()
        welcome.get_by_role("button", name="Bank notes").click()
        page.get_by_text(re.compile("Answers come from 4 memories in notes")).wait_for()


def test_a_field_may_be_called_as_what_every_object_has(browser: Any, address: str) -> None:
    with open_page(browser, address) as page:
        connected(page)
        page.locator(SETTINGS).click()
        page.get_by_role("button", name="Add a condition").click()
        page.get_by_label("Field").fill("__proto__")
        page.get_by_label("Value").fill("x")
        with page.expect_request("**/v1/chat/completions") as asked:
            page.get_by_role("textbox", name="Question").fill("Where?")
            page.get_by_role("textbox", name="Question").press("Enter")
        assert '"__proto__"' in asked.value.post_data
        page.locator(".exchange .problem").wait_for()
