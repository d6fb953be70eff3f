"""The description of all routes is true: requests drawn from it, good and bad, get only answers that it describes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving import add_animals, client, serving

from memspan.model.convert import LoadedModel

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def api(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server of its own: what is drawn may change anything."""
    with serving(loaded, tmp_path_factory.mktemp("drawn") / "notes", max_new_tokens=4) as (_, address):
        with client(address) as http:
            add_animals(http)
        yield schemathesis.openapi.from_url(f"{address}/openapi.json")


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_only_described_answers_come_back(api: Any, mode: GenerationMode) -> None:
    """Drawn of what the description allows, and of what it forbids."""
    operations = [found.ok() for found in api.get_all_operations()]
    assert len(operations) == 22
    for operation in operations:
        if mode is GenerationMode.POSITIVE or operation.body or operation.query:
            _try(operation, mode)


def _try(operation: Any, mode: GenerationMode) -> None:
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=4, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    def check(case: Any) -> None:
        response = case.call()
        case.validate_response(response, checks=CHECKS)
        if response.status_code >= 400:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}

    check()
