"""A headless Chromium before a server. Where there is none, the tests that need one are skipped."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_MILLISECONDS = 60_000


@contextlib.contextmanager
def chromium() -> Iterator[sync_api.Browser]:
    """The system's Chromium."""
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip("there is no chromium here")
    with sync_api.sync_playwright() as playwright:
        # Without its sandbox, which containers do not allow; it opens nothing but the test's own server.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def open_page(browser: sync_api.Browser, address: str, **options: object) -> Iterator[sync_api.Page]:
    """A tab of its own. Nothing may go wrong in it: no error of a script, nothing that the policy forbids, and no
    request to elsewhere."""
    context = browser.new_context(**options)
    errors: list[str] = []
    here = address.split("#")[0]

    def listen(said: sync_api.ConsoleMessage) -> None:
        # What the server refuses is an answer, not an error of the page.
        if said.type == "error" and "status of 4" not in said.text:
            errors.append(said.text)

    try:
        page = context.new_page()
        page.set_default_timeout(_MILLISECONDS)
        page.on("console", listen)
        page.on("request", lambda request: request.url.startswith((here, "blob:")) or errors.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        yield page
    finally:
        context.close()
    assert errors == []


def connected(page: sync_api.Page) -> sync_api.Page:
    page.locator("#place[data-health=up]").wait_for()
    return page


def in_bank(page: sync_api.Page, bank: str) -> None:
    """Choose a bank in the panel."""
    connected(page)
    page.locator("#place").click()
    page.get_by_role("dialog").get_by_label("Bank").select_option(bank)
    page.locator("#place-name", has_text=bank).wait_for()
    page.keyboard.press("Escape")


def ask(page: sync_api.Page, question: str) -> sync_api.Locator:
    """Ask with the keyboard; the exchange, when its answer is there."""
    box = page.get_by_role("textbox", name="Question")
    box.fill(question)
    box.press("Enter")
    exchange = page.locator(".exchange").last
    exchange.locator(".evidence").wait_for()
    assert exchange.locator(".question").inner_text() == question
    return exchange


def route_too(page: sync_api.Page) -> None:
    """Have passages found by routing as well as by words; an untrained router is not asked by itself."""
    page.locator(".composer summary").click()
    page.get_by_label("Find passages by").select_option("hybrid")


def open_memories(page: sync_api.Page) -> None:
    page.get_by_role("link", name="Memories", exact=True).click()
    page.locator(".memory-list[aria-busy=false]").wait_for()


def add_by_paste(page: sync_api.Page, text: str, title: str = "") -> None:
    page.get_by_role("button", name="Add memories").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Text").fill(text)
    dialog.get_by_label("Title").fill(title)
    dialog.get_by_role("button", name="Add", exact=True).click()
    dialog.wait_for(state="detached")
