"""Requests in which nothing is passed over: an unknown field is named, with the nearest known one."""

from __future__ import annotations

import difflib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from memspan.types import is_unicode


class Strict(BaseModel):
    """A part of a request in which an unknown field is an error: a misspelt one would silently do nothing."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        """
        Raises:
            ValidationError: at a field that there is not, with the nearest there is.
        """
        unknown = [name for name in given if name not in cls.model_fields] if isinstance(given, dict) else []
        if not unknown:
            return given
        error = PydanticCustomError(
            "unknown_field", "{told}", {"told": f"there is no such field{cls._hint(unknown[0])}"}
        )
        line = InitErrorDetails(type=error, loc=(unknown[0],), input=None)
        raise ValidationError.from_exception_data(cls.__name__, [line])

    @classmethod
    def _hint(cls, name: str) -> str:
        near = difflib.get_close_matches(name[:100], cls.model_fields, 1)
        return f"; did you mean {near[0]!r}?" if near else "; see /openapi.json"


class Body(Strict):
    """The body of a request."""

    @model_validator(mode="before")
    @classmethod
    def _unicode(cls, given: Any) -> Any:
        """
        Raises:
            PydanticCustomError: a text in it can't be written as UTF-8.
        """
        try:
            whole = is_unicode(json.dumps(given, ensure_ascii=False, default=str))
        except RecursionError:
            raise PydanticCustomError("depth", "its values are nested too deep; send flat ones") from None
        if not whole:
            raise PydanticCustomError("unicode", "a text holds half a character (a lone surrogate); send whole ones")
        return given
