"""Which documents name a person or a thing, and which ids somebody may have meant."""

from __future__ import annotations

import difflib
import json

from memspan.bank.catalog import Catalog
from memspan.bank.scope import EFFECTIVE_DATE, EVERYTHING, Scope
from memspan.bank.stored import of_both
from memspan.dates import date_key

_MOST_COMPARED = 5_000
_MOST_MEANT = 3


def meant_ids(catalog: Catalog, namespace: str, given: str) -> list[str]:
    """External ids that somebody may have meant by what is none: the id of a document that was given by its number; ids
    of this file name (also behind a longer path, in another case or with other slashes), of this folder, or else of
    nearly these letters. At most three.
    """
    if given.isdecimal() and len(given) < 19:
        of_number = catalog.external_id_of(namespace, int(given))
        if of_number is not None:
            return [of_number]
    ids = catalog.external_ids(namespace)
    end, paths = _as_path(given), [(id, _as_path(id)) for id in ids]
    of_name = [id for id, path in paths if path.endswith(end) or end.endswith(path)]
    of_folder = [id for id, path in paths if f"{end}/" in path]
    return (of_name or of_folder or difflib.get_close_matches(given, ids[:_MOST_COMPARED], _MOST_MEANT))[:_MOST_MEANT]


def _as_path(id: str) -> str:
    return f"/{id.casefold().replace(chr(92), '/').removeprefix('./').strip('/')}"


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
