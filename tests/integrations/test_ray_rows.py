"""Rows of a Ray dataset as documents: values of every kind, read without a cluster."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray", reason="Ray is not installed")

from memspan.integrations import ray as on_ray
from memspan.types import Document, Skipped


class Rows:
    """What of a dataset is read."""

    def __init__(self, *rows: dict[str, Any]) -> None:
        self._rows = rows

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        yield from self._rows


def read(*rows: dict[str, Any]) -> list[Document | Skipped]:
    return list(on_ray._read(Rows(*rows)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (b"caf\xc3\xa9", "caf\u00e9"),
        (np.bytes_(b"caf\xc3\xa9"), "caf\u00e9"),
        (np.array([b"a", b"b"]), ["a", "b"]),
        (np.float32(0.5), 0.5),
        (np.array([1, 2]), [1, 2]),
        (Decimal("1.50"), "1.50"),
        (math.nan, None),
        (datetime.date(2024, 1, 5), "2024-01-05"),
        (np.datetime64("2024-01-05"), "2024-01-05"),
        (np.array(["2024-01-05T10:30:00"], "datetime64[ns]"), ["2024-01-05T10:30:00.000000000"]),
        ({"deep": np.int64(3)}, {"deep": 3}),
    ],
)
def test_a_value_is_kept_as_json_has_it(value: Any, kept: Any) -> None:
    (found,) = read({"text": "An otter.", "x": value})
    assert isinstance(found, Document) and found.metadata.get("x") == kept


@pytest.mark.parametrize("date", [np.datetime64("2024-01-05T10:30:00", "ns"), datetime.datetime(2024, 1, 5, 10, 30)])
def test_a_time_of_any_kind_is_the_date(date: Any) -> None:
    (found,) = read({"text": "An otter.", "date": date})
    assert isinstance(found, Document) and found.date is not None and found.date.startswith("2024-01-05T10:30:00")


def test_bytes_that_are_no_text_cost_their_row_alone() -> None:
    found = read({"text": "One"}, {"text": b"\xff\xfe"}, {"text": "Two", "picture": b"\x89PNG"}, {"text": b"Three"})
    assert [one.text for one in found if isinstance(one, Document)] == ["One", "Three"]
    reason = "a column holds bytes that are no text in UTF-8; leave it out"
    assert [one for one in found if isinstance(one, Skipped)] == [Skipped(f"row {n}", reason) for n in (2, 3)]
