"""The page for everybody: no violation that axe-core finds, in any of its states; and all of it by keyboard alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import ask, connected, in_bank, open_memories, open_page, route_too
from serving import add_animals, client, serving

from memspan.model.convert import LoadedModel
from memspan.serve.keys import KeyFile

Check = Callable[[str], None]

SIZES = {"desktop": {"width": 1280, "height": 800}, "phone": {"width": 360, "height": 700}}
VARIANTS = [(size, scheme) for size in SIZES for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def address(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("access")
    with serving(loaded, folder / "notes", folder / "empty", max_new_tokens=6) as (_, address):
        with client(address) as http:
            add_animals(http)
            long = {
                "id": "long",
                "title": "Long",
                "text": "A sentence about hedgehogs. " * 400,
                "metadata": {"kind": "x"},
            }
            http.post("/v1/memories", json=long).raise_for_status()
        yield address


@pytest.fixture
def checked(request: pytest.FixtureRequest) -> Iterator[Callable[[Any], Check]]:
    """Makes of a page what checks its state; all violations are told at the end, by state."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core comes with it").Axe()
    found: dict[str, Any] = {}

    def checking(page: Any) -> Check:
        def check(state: str) -> None:
            response = axe.run(page).response
            assert response["passes"], "axe looked at something"
            for one in response["violations"]:
                found[f"{state}: {one['id']}"] = [node["html"][:200] for node in one["nodes"]]

        return check

    yield checking
    assert found == {}


def _new(size: str, scheme: str) -> dict[str, Any]:
    # Without animations: what is half faded in has another contrast.
    return {"viewport": SIZES[size], "color_scheme": scheme, "reduced_motion": "reduce"}


@pytest.mark.parametrize(("size", "scheme"), VARIANTS)
def test_asking_has_no_violations(browser: Any, address: str, checked: Any, size: str, scheme: str) -> None:
    with open_page(browser, address, **_new(size, scheme)) as page:
        check = checked(page)
        connected(page)
        check("welcome")
        route_too(page)
        page.get_by_role("button", name="Add a condition").click()
        check("settings")
        page.locator(".composer summary").click()
        exchange = ask(page, "Where does the otter live?")
        check("answer")
        exchange.locator(".inspector summary").click()
        exchange.get_by_role("grid").wait_for()
        exchange.locator("td").first.focus()
        check("inspector")
        exchange.locator(".passage .title").last.click()
        page.locator("dialog .document").wait_for()
        check("reader")
        page.keyboard.press("Escape")
        page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
        exchange.get_by_role("button", name="Copy link").click()
        check("link")
        page.keyboard.press("Escape")
        page.route("**/v1/chat/completions", lambda route: route.fulfill(status=404, body="{}"))
        page.get_by_role("textbox", name="Question").fill("Where?")
        page.keyboard.press("Enter")
        page.locator(".exchange .problem").wait_for()
        check("unanswered")
        page.locator("#place").click()
        page.locator("dialog .facts").first.wait_for()
        check("panel")
        page.keyboard.press("Escape")
        in_bank(page, "empty")
        check("empty")
        page.evaluate("location.hash = '#/ask?q=Who%3F&bank=nowhere'")
        page.locator(".composer .problem").wait_for()
        check("bad link")


@pytest.mark.parametrize(("size", "scheme"), VARIANTS)
def test_memories_have_no_violations(
    browser: Any, address: str, checked: Any, tmp_path: Path, size: str, scheme: str
) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    (tmp_path / "b.md").write_text("# B\n\nText.", encoding="utf-8")
    with open_page(browser, address, **_new(size, scheme)) as page:
        check = checked(page)
        connected(page)
        open_memories(page)
        page.get_by_text("Filter", exact=True).click()
        page.locator("#memories").get_by_role("button", name="Add a condition").click()
        check("list and filter")
        page.locator("#memories").get_by_role("button", name="Remove").click()
        page.get_by_label("Search memories").fill("The otter lives in Rome")
        page.locator(".weaker summary").click()
        check("search")
        page.get_by_label("Search memories").fill("xylophone")
        page.get_by_text("Nothing found").wait_for()
        check("nothing found")
        page.get_by_label("Search memories").fill("")
        page.locator("a[data-id=long]").click()
        page.locator(".detail .document").wait_for()
        check("memory")
        page.get_by_role("button", name="Edit", exact=True).click()
        page.get_by_label("Metadata").fill("[")
        page.get_by_role("button", name="Save").click()
        page.locator(".detail .problem").wait_for()
        check("edit")
        page.evaluate("location.hash = '#/memories/none'")
        page.locator(".edit").wait_for(state="detached")
        page.locator(".detail .problem").wait_for()
        check("no such memory")
        page.evaluate("location.hash = '#/memories'")
        page.get_by_role("button", name="Add memories").click()
        page.locator("dialog summary").click()
        check("add")
        page.locator("dialog input[type=file]").set_input_files([tmp_path / "a.pdf", tmp_path / "b.md"])
        page.locator("dialog .skipped li").wait_for()
        check("review")
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Export").click()
        page.get_by_role("button", name="Save the file").wait_for()
        check("export")
        page.keyboard.press("Escape")
        page.evaluate(
            "import('./static/toast.js').then(({ toast }) => toast('Deleted “x”', { label: 'Undo', run: () => {} }))"
        )
        check("notice")
        in_bank(page, "empty")
        page.get_by_text("No memories yet").wait_for()
        check("no memories")


@pytest.mark.parametrize(("size", "scheme"), VARIANTS)
def test_the_map_and_what_stands_without_a_server_have_no_violations(
    browser: Any, address: str, loaded: LoadedModel, checked: Any, tmp_path: Path, size: str, scheme: str
) -> None:
    with open_page(browser, address, **_new(size, scheme)) as page:
        check = checked(page)
        connected(page)
        ask(page, "Where does the otter live?")
        page.get_by_role("link", name="Map", exact=True).click()
        page.locator(".drawing .read").first.press("Enter")
        page.locator(".listed a").first.wait_for()
        check("map")
        in_bank(page, "empty")
        page.locator("#map").get_by_text("no memories here yet").wait_for()
        check("empty map")
        page.route("**/v1/**", lambda route: route.fulfill(status=404, body="{}"))
        page.get_by_role("link", name="Ask", exact=True).click()
        page.evaluate("import('./static/place.js').then(({ refresh }) => refresh())")
        page.locator("#place[data-health=down]").click()
        page.locator("dialog .problem").wait_for()
        check("server down")
    keys = KeyFile(tmp_path / "keys.json")
    keys.add("reader", ("read",), ("team",))
    with (
        serving(loaded, tmp_path / "notes", keys=keys) as (_, keyed),
        open_page(browser, keyed, **_new(size, scheme)) as page,
    ):
        page.get_by_label("API key").fill("msk_wrong")
        page.keyboard.press("Enter")
        page.get_by_text("did not take this key").wait_for()
        checked(page)("key")


def _tab_to(page: Any, selector: str, most: int = 40) -> None:
    """Press Tab until an element has the focus that can be seen."""
    for _ in range(most):
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(
        f"{selector} is not reached; the focus is on {page.evaluate('document.activeElement.outerHTML')}"
    )


@pytest.mark.parametrize("size", SIZES)
def test_everything_is_done_with_the_keyboard_alone(browser: Any, address: str, size: str) -> None:
    with open_page(browser, address, viewport=SIZES[size]) as page:
        connected(page)
        keys = page.keyboard
        page.evaluate("document.activeElement.blur()")
        _tab_to(page, ".skip")
        keys.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        _tab_to(page, ".composer textarea")
        keys.type("Where does the otter live?")
        keys.press("Shift+Enter")
        keys.press("Backspace")
        keys.press("Enter")
        page.locator(".exchange .evidence").wait_for()
        assert page.evaluate("document.activeElement.matches('.composer textarea')")
        keys.press("Shift+Tab")
        for _ in range(20):
            if page.evaluate("document.activeElement.matches('.passage .title')"):
                break
            keys.press("Shift+Tab")
        title = page.evaluate("document.activeElement.textContent")
        keys.press("Enter")
        page.locator("dialog .document").wait_for()
        keys.press("Escape")
        page.locator("dialog").wait_for(state="detached")
        assert page.evaluate("document.activeElement.textContent") == title  # where it was before
        _tab_to(page, ".composer summary")
        keys.press("Enter")
        _tab_to(page, ".composer select")
        keys.press("ArrowDown")
        assert page.evaluate("localStorage.getItem('memspan.settings') !== null")
        page.evaluate("document.activeElement.blur()")
        for name, reached in (("#/memories", ".memory-list a"), ("#/map", ".drawing [role=button]")):
            _tab_to(page, f".bar a[href='{name}']", 60)
            keys.press("Enter")
            page.locator(reached).first.wait_for()
            _tab_to(page, reached)
            keys.press("Enter")
            _tab_to(page, ".detail" if name == "#/memories" else ".listed a")
            outlined = "getComputedStyle(document.activeElement).outlineStyle"
            assert page.evaluate(outlined) != "none" or page.evaluate("document.activeElement.tagName") == "g"
            page.evaluate("document.activeElement.blur()")
