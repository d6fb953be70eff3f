"""A bank's documents as JSON lines: written, and read again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO

from memspan.bank.texts import TextBank
from memspan.errors import CorpusError
from memspan.types import Document


def export_documents(bank: TextBank, stream: IO[str]) -> int:
    """Write every live document as a line of JSON, as of now; returns how many.

    Keys: namespace, external_id, title, text, date (its own, or the time it was added), metadata.
    """
    count = 0
    with bank.pinned_catalog() as catalog:
        for namespace in catalog.namespaces():
            for stored in catalog.sources(namespace):
                document = stored.document
                values = {
                    "namespace": namespace,
                    "external_id": document.external_id,
                    "title": document.title,
                    "text": document.text,
                    "date": document.date or stored.added_at,
                    "metadata": dict(document.metadata),
                }
                stream.write(json.dumps(values, ensure_ascii=False) + "\n")
                count += 1
    return count


def read_exported(stream: IO[str]) -> Iterator[tuple[str, Document]]:
    """Namespaces and documents of what `export_documents` wrote.

    Raises:
        CorpusError: a line is not of that form (named).
    """
    lines, number = iter(stream), 0
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
            yield read


def _read_line(line: str) -> tuple[str, Document]:
    values = json.loads(line)
    namespace, metadata = values["namespace"], values["metadata"]
    if not isinstance(namespace, str) or not isinstance(metadata, dict):
        raise TypeError("the namespace is no text, or the metadata are no object")
    return namespace, Document(values["external_id"], values["text"], values["title"], metadata, values["date"])
