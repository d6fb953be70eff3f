"""Names of selectors in requests: checked when a request comes, listed when the schema is read."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from memspan.generate.selectors import SELECTORS, selector_names


def _check(ranking: bool, name: str) -> str:
    if name not in (names := selector_names(ranking)):
        raise SELECTORS.none_of(names, name)
    return name


def _list(ranking: bool, schema: dict[str, Any]) -> None:
    schema["enum"] = selector_names(ranking)


Selector = Annotated[str, AfterValidator(partial(_check, False)), Field(json_schema_extra=partial(_list, False))]
RankingSelector = Annotated[str, AfterValidator(partial(_check, True)), Field(json_schema_extra=partial(_list, True))]
