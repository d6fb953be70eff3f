"""Errors as OpenAI's clients read them: a status, a message, a type, a code. No message names a path of the server."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from memspan.errors import (
    AnswererError,
    AnswererRefused,
    BankBusy,
    BankError,
    DuplicateDocument,
    EmptyBank,
    MemspanError,
    NotEncoded,
    QuestionError,
    ReadOnlyBank,
    UnknownDocument,
)
from memspan.serve.logs import REQUEST_ID, without_folders

_log = logging.getLogger(__name__)


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorOut(BaseModel):
    """OpenAI's form of an error."""

    error: ErrorBody


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorOut, "description": text}
    for status, text in {
        400: "The request is malformed, or a value is not allowed.",
        401: "No valid API key.",
        403: "The key may not do this, or not in this namespace; or the bank is only read here.",
        404: "There is no such thing.",
        408: "The request did not come whole in time.",
        409: "It is there already.",
        413: "The request is too large.",
        415: "The body is not JSON.",
        429: "Too many requests; see Retry-After.",
        502: "The model that writes the answers gave none.",
        503: "Not now; see Retry-After.",
        504: "It took too long.",
    }.items()
}

_ABSENT = {
    "responses": "there is no Responses API here; ask with POST /v1/chat/completions",
    "completions": "there are no plain completions here; ask with POST /v1/chat/completions",
    "embeddings": "there are no embeddings here; add texts with POST /v1/memories, find them with /v1/memories/search",
}
_LONGEST_NAME = 200
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ApiError(HTTPException):
    """A request that is refused, or cannot be answered.

    Args:
        status: of the response.
        message: for people; says what to do.
        code: for programs.
        param: the field of the request that is wrong.
        retry_after: seconds after which the same request may succeed.
    """

    def __init__(
        self, status: int, message: str, code: str, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        headers = None if retry_after is None else {"Retry-After": str(max(1, round(retry_after)))}
        super().__init__(status, message, headers)
        self.code, self.param = code, param

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        kind = _TYPES.get(self.status_code, "invalid_request_error" if self.status_code < 500 else "server_error")
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}


def api_error(error: Exception) -> ApiError:
    """An error as a client sees it."""
    match error:
        case ApiError():
            return error
        case HTTPException():
            return _of_framework(error)
        case RequestValidationError():
            return _of_validation(error)
        case UnknownDocument():
            return ApiError(404, "there is no such memory in this namespace", "memory_not_found")
        case DuplicateDocument():
            return ApiError(409, "a memory of this id is there already; update it, or choose another id", "duplicate")
        case NotEncoded():
            message = "none of these memories is encoded yet; ask with a selector that finds words, or again in a while"
            return ApiError(400, message, "not_encoded")
        case EmptyBank():
            message = "there is no memory to ask in this namespace, or within the filter; add some, or widen it"
            return ApiError(400, message, "empty_memory")
        case ReadOnlyBank():
            message = "this bank is only read here; change it where it is written and published"
            return ApiError(403, message, "read_only")
        case BankBusy():
            message = "another process is changing this bank; try again"
            return ApiError(503, message, "bank_busy", retry_after=2)
        case BankError():
            _log.error("request %s: %s: %s", REQUEST_ID.get(), type(error).__name__, without_folders(str(error)))
            return ApiError(503, f"the bank cannot be used now; {_see_log()}", "bank_unavailable")
        case AnswererRefused():
            return ApiError(400, without_folders(str(error)), "answerer_refused")
        case AnswererError():
            _log.error("request %s: %s", REQUEST_ID.get(), without_folders(str(error)))
            message = f"the server got no answer from the model that writes them; ask again; {_see_log()}"
            return ApiError(502, message, "answerer_failed")
        case QuestionError():
            return ApiError(400, str(error), "context_length_exceeded" if "room" in str(error) else "invalid_question")
        case MemspanError():
            return ApiError(400, without_folders(str(error)), "invalid_value")
    _log.error("request %s: an unexpected error", REQUEST_ID.get(), exc_info=error)
    return ApiError(500, f"something went wrong in the server; {_see_log()}", "internal_error")


def _see_log() -> str:
    return f"its log says why, at the request {REQUEST_ID.get()}"


def error_response(error: Exception) -> Response:
    """The response to a request that met an error."""
    found = api_error(error)
    # Escaped: what a message repeats of a request may be no valid Unicode.
    content = json.dumps(found.body).encode()
    return Response(content, found.status_code, found.headers, "application/json")


async def handle(request: Request, error: Exception) -> Response:
    """As FastAPI calls it."""
    absent = _ABSENT.get(request.url.path.rstrip("/").removeprefix("/v1/").partition("/")[0])
    if absent and isinstance(error, HTTPException) and not isinstance(error, ApiError):
        error = ApiError(404, absent, "route_not_found")
    return error_response(error)


@contextlib.contextmanager
def values_checked(param: str | None = None) -> Iterator[None]:
    """A value that the library refuses becomes a 400 about a field."""
    try:
        yield
    except ValueError as error:
        raise ApiError(400, str(error), "invalid_value", param=param) from error


def _of_framework(error: HTTPException) -> ApiError:
    if error.status_code == 404:
        return ApiError(404, "there is no such route; see /openapi.json", "route_not_found")
    if error.status_code == 405:
        found = ApiError(405, "this route does not take this method; see /openapi.json", "method_not_allowed")
        found.headers = error.headers
        return found
    if error.status_code == 400:
        return ApiError(400, "the body is not JSON in UTF-8", "invalid_json")
    return ApiError(error.status_code, str(error.detail), "invalid_request")


def _of_validation(error: RequestValidationError) -> ApiError:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is not JSON in UTF-8", "invalid_json")
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))[:_LONGEST_NAME]
    code = {"unknown_field": "unknown_field", "unsupported": "unsupported_value"}.get(first["type"], "invalid_value")
    return ApiError(400, f"{place or 'the request'}: {first['msg']}", code, param=place or None)
