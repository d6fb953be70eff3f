"""Search by words without a model finds what a `Memory` finds by its selector "lexical", and refuses the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_loaded

from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.bank.scope import Scope
from memspan.bank.texts import TextBank
from memspan.errors import MemspanError
from memspan.generate.lexical import search_words
from memspan.generate.memory import Memory
from memspan.types import Document, Evidence

ANIMALS = ("otter", "heron", "badger", "newt", "lynx")
QUESTIONS = ("otter river", "the river near the rivers", "nothing of it", 'otter AND NOT "heron', "¿lynx?")
SCOPES: tuple[tuple[dict[str, Any] | None, str | None], ...] = (
    (None, None),
    ({"year": 2003}, None),
    ({"year": {">": 2010}}, "2015-01-01"),
    ({"year": 9999}, None),
    ({"wings": 2}, None),
    ({"year": {"~": 1}}, None),
    (None, "yesterday"),
)


@pytest.fixture(scope="module")
def banks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Memory, TextBank]]:
    folder = tmp_path_factory.mktemp("lexical") / "bank"
    loaded = tiny_loaded()
    with Memory(MemoryBank.create(folder, manifest_of(loaded)), loaded) as memory:
        memory.add(
            Document(
                f"{animal}-{year}",
                f"The {animal} saw a river. " * (1 + year % 3),
                animal if year % 2 else "",
                {"year": year},
                f"{year}-05-01",
            )
            for year in range(2000, 2020)
            for animal in ANIMALS
        )
        memory.delete([f"otter-{year}" for year in range(2000, 2010)])
        memory.in_namespace("bob").add([Document("secret", "Bob's otter swims in a river.")])
        with closing(TextBank.open(folder)) as texts:
            yield memory, texts


def outcome(search: Callable[[], list[Evidence]]) -> list[Evidence] | tuple[type[Exception], str]:
    try:
        return search()
    except MemspanError as error:
        return type(error), str(error)


@pytest.mark.parametrize("where, as_of", SCOPES)
@pytest.mark.parametrize("namespace", ["default", "bob", "nobody"])
def test_the_same_documents_and_the_same_errors(
    banks: tuple[Memory, TextBank], where: dict[str, Any] | None, as_of: str | None, namespace: str
) -> None:
    memory, texts = banks[0].in_namespace(namespace), banks[1]
    one_fault = where is None and as_of is None  # of two, each names the one it sees first
    for limit in (10, 0, 1, 95, *([-1] if one_fault else [])):
        for question in (*QUESTIONS, *((" ", "\udcff") if one_fault else ())):

            def by_memory(q: str = question, n: int = limit) -> list[Evidence]:
                return memory.search(q, selector="lexical", limit=n, where=where, as_of=as_of)

            def by_words(q: str = question, n: int = limit) -> list[Evidence]:
                return search_words(texts, q, Scope.parse(where, as_of), n, namespace)

            assert outcome(by_words) == outcome(by_memory), (question, limit)
    if (where, as_of, namespace) == (None, None, "default"):
        assert len(memory.search("river", selector="lexical", limit=95)) == 90


def test_what_another_process_commits_is_found_by_the_next_search(tmp_path: Path) -> None:
    loaded = tiny_loaded()
    with Memory(MemoryBank.create(tmp_path / "bank", manifest_of(loaded)), loaded) as memory:
        memory.add([Document("a", "An otter.")])
        with closing(TextBank.open(tmp_path / "bank")) as texts:
            assert [item.external_id for item in search_words(texts, "otter")] == ["a"]
            memory.add([Document("b", "Another otter.")])
            memory.delete(["a"])
            assert [item.external_id for item in search_words(texts, "otter")] == ["b"]
