"""Documents about another key than the question's are not read beside one about its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from memspan.generate import interleave
from memspan.generate.interleave import Plan, QuestionState, next_documents
from memspan.generate.selectors import SearchResult
from memspan.routing.ranking import Selected
from memspan.types import Evidence

TEXTS = ("Order 48215 was sent to Rome.", "Order 48213 was sent to Bern.", "Bern is a city.", "Order 48219 was sent.")


class Found:
    """A finder that has the texts under their places."""

    def evidence(self, selected: Sequence[Selected]) -> list[Evidence]:
        return [evidence(one.document_id) for one in selected]


def evidence(number: int) -> Evidence:
    return Evidence(number, str(number), TEXTS[number], "", "2000-01-01", {}, 1.0, None, None)  # type: ignore[call-arg]


def chosen(question: str, **options: Any) -> list[int]:
    plan = Plan(selector="lexical", rounds=1, documents=4, **options)
    found = SearchResult([Selected(number, 1.0, None) for number in range(4)])
    read = next_documents(QuestionState(question), found, plan, Found(), question, None, {})  # type: ignore[arg-type]
    return [item.document_id for item in read]


def test_of_an_exact_key_only_its_own_document_and_what_is_no_rival(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen("Where was order 48213 sent?") == [1, 2]
    assert chosen("Where were orders sent?") == [0, 1, 2, 3]
    assert chosen("Which of the orders 48213 and 48215 went to Rome?") == [0, 1, 2]
    monkeypatch.setattr(interleave, "reranked", lambda name, query, found, means: list(reversed(found)))
    assert chosen("Where was order 48213 sent?", rerank="model") == [2, 1]
