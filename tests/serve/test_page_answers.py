"""How the page shows an answer while and after it is written, by another model whose words the tests choose."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from browsing import ask, connected, open_page
from chat_server import ChatServer, chat_server, say
from serving import add_animals, client, serving

from memspan.generate.endpoint import Endpoint
from memspan.model.convert import LoadedModel

TOLD = """() => {
  window.told = [];
  new MutationObserver((records) => {
    for (const record of records)
      if (record.target.matches?.(".progress"))
        window.told.push(...[...record.addedNodes].map((node) => node.textContent));
  }).observe(document.querySelector(".conversation"), { childList: true, subtree: true });
}"""


@pytest.fixture(scope="module")
def served(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ChatServer, str]]:
    with chat_server() as other:
        endpoint = Endpoint(other.url, "big", room=8192)
        folder = tmp_path_factory.mktemp("answers")
        with serving(loaded, folder / "notes", answerer=endpoint) as (_, address):
            with client(address) as http:
                add_animals(http)
            yield other, address


@pytest.mark.parametrize(
    ("pieces", "shown", "cited", "uncited", "note"),
    [
        (["The otter lives in Rome [1]."], "The otter lives in Rome1.", ["The otter lives in Rome"], [], None),
        (
            ["\n🦦 The otter lives", " in Rome. It sings."],
            "🦦 The otter lives in Rome.1 It sings.",
            ["🦦 The otter lives in Rome."],
            ["It sings."],
            "underlined with dots",
        ),
        (["<b>It</b> sings."], "<b>It</b> sings.", [], ["<b>It</b> sings."], "No passage holds the words of this"),
        (["The documents do not say. [0]"], "The documents do not say.", [], None, "Your memories do not say"),
        (["  \n"], "The model wrote nothing.", [], [], None),
        (["See rows[0] of the otter lives in Rome"], None, None, None, None),
    ],
)
def test_sentences_lead_to_the_passages_that_hold_their_words(
    browser: Any,
    served: tuple[ChatServer, str],
    pieces: list[str],
    shown: str | None,
    cited: list[str] | None,
    uncited: list[str] | None,
    note: str | None,
) -> None:
    other, address = served
    other.plays = [say(*pieces)]
    with open_page(browser, address) as page:
        exchange = ask(connected(page), "Where does the otter live?")
        answer = exchange.locator(".answer")
        if shown is None:
            assert "See rows[0] of the otter" in answer.inner_text().replace("\n", "")
            return
        assert answer.text_content() == shown and answer.locator("b").count() == 0
        assert answer.locator(".cited").all_text_contents() == cited
        if uncited is not None:
            assert answer.locator(".uncited").all_text_contents() == uncited
        assert (exchange.locator(".support").all_text_contents() or [""])[0].find(note or "") >= 0
        if note is None:
            assert exchange.locator(".support").count() == 0
        if cited:
            answer.get_by_role("button", name="Passage 1: otter").focus()
            page.keyboard.press("Enter")
            assert page.evaluate("document.activeElement.textContent") == "otter"
            assert "holds words of the answer" in exchange.locator(".passage").first.inner_text()


def test_it_is_said_what_is_done_now(browser: Any, served: tuple[ChatServer, str]) -> None:
    other, address = served
    other.plays = [say("Rome", ", I think.")]
    with open_page(browser, address) as page:
        connected(page)
        page.evaluate(TOLD)
        exchange = ask(page, "Where does the otter live?")
        told = page.evaluate("told")
        assert told[0] == "Finding passages…" and told[1].startswith("Reading ") and told[2] == "Writing…"
        assert exchange.locator(".progress").text_content() == ""


def test_several_rounds_are_told_one_by_one(browser: Any, served: tuple[ChatServer, str]) -> None:
    other, address = served
    other.plays = [say("Rome.")]
    with open_page(browser, address) as page:
        connected(page)
        page.locator(".composer summary").click()
        page.get_by_label("Rounds, at most").fill("2")
        page.get_by_label("Passages, at most").fill("2")
        page.evaluate(TOLD)
        ask(page, "Where does the otter live?")
        told = page.evaluate("told")
        assert told[0] == "Finding passages…" and told[-1] == "Writing…"
        assert any(text.startswith("Reading ") for text in told)


def test_an_earlier_answer_goes_on_as_it_was_written(browser: Any, served: tuple[ChatServer, str]) -> None:
    other, address = served
    other.plays = [say("The otter lives in Rome.")]
    with open_page(browser, address) as page:
        ask(connected(page), "Where does the otter live?")
        other.asked.clear()
        page.get_by_role("textbox", name="Question").fill("And the heron?")
        page.keyboard.press("Enter")
        page.locator(".exchange").nth(1).locator(".evidence").wait_for()
        said = [message["content"] for message in other.asked[-1]["messages"] if message["role"] == "assistant"]
        assert said == ["The otter lives in Rome."]  # without the numbers of the page
