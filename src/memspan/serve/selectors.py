"""Names of selectors and rerankers in requests: checked when a request comes, listed when the schema is read."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from memspan.generate.rerank import RERANKERS, reranker_names
from memspan.generate.selectors import SELECTORS, selector_names


def _check(ranking: bool, name: str) -> str:
    if name not in (names := selector_names(ranking)):
        raise SELECTORS.none_of(names, name)
    return name


def _list(ranking: bool, schema: dict[str, Any]) -> None:
    schema["enum"] = selector_names(ranking)


Selector = Annotated[str, AfterValidator(partial(_check, False)), Field(json_schema_extra=partial(_list, False))]
RankingSelector = Annotated[str, AfterValidator(partial(_check, True)), Field(json_schema_extra=partial(_list, True))]


def _check_reranker(name: str) -> str:
    if name not in (names := reranker_names()):
        raise RERANKERS.none_of(names, name)
    return name


def _list_rerankers(schema: dict[str, Any]) -> None:
    schema["enum"] = reranker_names()


RerankerName = Annotated[str, AfterValidator(_check_reranker), Field(json_schema_extra=_list_rerankers)]
