"""Which documents name a person or a thing."""

from __future__ import annotations

import json

from memspan.bank.catalog import Catalog
from memspan.bank.scope import EFFECTIVE_DATE, EVERYTHING, Scope
from memspan.bank.stored import of_both
from memspan.dates import date_key


def documents_naming(catalog: Catalog, namespace: str, name: str, scope: Scope = EVERYTHING) -> list[int]:
    """The ids of the documents of a scope that hold every word of a name in one of its forms, the newest first.

    Raises:
        FilterError: there are none, and no document has a field that the filter names.
    """
    indexes = [catalog.word_index(namespace), catalog.past_word_index(namespace) if scope.is_past else None]
    ids = [number for index in indexes if index is not None for number in index.naming(name, scope)]
    if not ids:
        catalog.source_page(namespace, 0, 1, scope)  # finds fields that no document has
    given = "d.id IN (SELECT value FROM json_each(?))"
    query = of_both(f"SELECT d.id, {EFFECTIVE_DATE} FROM {{parts}} WHERE {given} AND {scope.sql}", scope)
    found = catalog.read(query, (json.dumps(ids), *scope.values) * 2)
    return [number for number, _ in sorted(found, key=lambda one: (date_key(one[1]), one[0]), reverse=True)]
