"""Names of selectors and rerankers in requests: checked when a request comes, listed when the schema is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from memspan.generate.rerank import RERANKERS, reranker_names
from memspan.generate.selectors import SELECTORS, selector_names
from memspan.registry import Registry


def _check(registry: Registry[Any], offered: Callable[[], Sequence[str]], name: str) -> str:
    if name not in (names := offered()):
        raise registry.none_of(names, name)
    return name


def _list(offered: Callable[[], Sequence[str]], schema: dict[str, Any]) -> None:
    schema["enum"] = offered()


_ranking = partial(selector_names, True)
Selector = Annotated[
    str,
    AfterValidator(partial(_check, SELECTORS, selector_names)),
    Field(json_schema_extra=partial(_list, selector_names)),
]
RankingSelector = Annotated[
    str, AfterValidator(partial(_check, SELECTORS, _ranking)), Field(json_schema_extra=partial(_list, _ranking))
]
RerankerName = Annotated[
    str,
    AfterValidator(partial(_check, RERANKERS, reranker_names)),
    Field(json_schema_extra=partial(_list, reranker_names)),
]
