"""A bank's documents as JSON lines: written, and read again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO

from memspan.bank.catalog import Catalog
from memspan.bank.stored import StoredSource
from memspan.bank.texts import TextBank
from memspan.errors import CorpusError
from memspan.types import Document


def export_documents(bank: TextBank, stream: IO[str], *, history: bool = False) -> int:
    """Write every document that a question sees as a line of JSON, as of now; returns how many.

    Keys: namespace, external_id, title, text, date (its own, or the time it was added), metadata; where they say
    something, expires and pinned.

    Args:
        history: also former versions, with the keys recorded_at and superseded_at (null of what holds), a document's
            in the order they were recorded.
    """
    count = 0
    with bank.pinned_catalog() as catalog:
        for namespace in catalog.namespaces():
            for stored in _stored(catalog, namespace, history):
                document = stored.document
                values = {
                    "namespace": namespace,
                    "external_id": document.external_id,
                    "title": document.title,
                    "text": document.text,
                    "date": document.date or stored.added_at,
                    "metadata": dict(document.metadata),
                }
                retention = {"expires": document.expires, "pinned": document.pinned}
                values |= {key: value for key, value in retention.items() if value is not None}
                if history:
                    values |= {"recorded_at": stored.recorded_at, "superseded_at": stored.superseded_at}
                stream.write(json.dumps(values, ensure_ascii=False) + "\n")
                count += 1
    return count


def _stored(catalog: Catalog, namespace: str, history: bool) -> Iterator[StoredSource]:
    for stored in catalog.sources(namespace):
        yield from catalog.versions(namespace, stored.document.external_id) if history else (stored,)


def read_exported(stream: IO[str]) -> Iterator[tuple[str, Document]]:
    """Namespaces and documents of what `export_documents` wrote.

    Raises:
        CorpusError: a line is not of that form, or has the id of another and other content (named).
    """
    lines, number, seen = iter(stream), 0, dict[int, tuple[int, int]]()
    while True:
        number += 1
        try:
            line = next(lines, None)
            if line is None:
                return
            read = _read_line(line) if line.strip() else None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorpusError(
                f"line {number} is not of an exported bank ({type(error).__name__}: {error}); "
                "files of your own are added with: memspan add BANK FILE"
            ) from error
        if read is not None:
            namespace, document = read
            content = hash((document.content_hash, document.expires, document.pinned))
            before, known = seen.setdefault(hash((namespace, document.external_id)), (number, content))
            if known != content:
                raise CorpusError(
                    f"lines {before} and {number} have one id, {document.external_id!r}, and differ; give one another"
                )
            yield read


def _read_line(line: str) -> tuple[str, Document]:
    values = json.loads(line)
    namespace, metadata = values["namespace"], values["metadata"]
    if not isinstance(namespace, str) or not isinstance(metadata, dict):
        raise TypeError("the namespace is no text, or the metadata are no object")
    if values.get("superseded_at") is not None:
        raise ValueError("it is a former version; export the bank again without --history, or as one file")
    given = (values["external_id"], values["text"], values["title"], metadata, values["date"])
    return namespace, Document(*given, values.get("expires"), values.get("pinned"))
