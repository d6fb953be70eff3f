"""A document's parts: the spans of its text that are encoded, each under an id of its own."""

from __future__ import annotations

from memspan.text.definitions import CODE_KEY, split_code
from memspan.text.splitter import split_text
from memspan.text.template import PromptTemplate
from memspan.types import Document, Span

# The longest id that document splitting leaves room for, in its template and on both sides of the text.
_WIDEST_ID = 10**12


def split_document(document: Document, template: PromptTemplate, max_document_tokens: int) -> list[Span]:
    """The parts a text is encoded in: each, with title, id and template, at most `max_document_tokens` long.

    At least half of that is left to the text, so a title longer than the other half makes longer documents.
    Source code is cut at its definitions, also where it would fit as a whole.
    """
    overhead = len(template.document(_WIDEST_ID, f"{document.title}\n"))
    limit = max(max_document_tokens - overhead, max_document_tokens // 2, 1)
    language = document.metadata.get(CODE_KEY)
    if isinstance(language, str):
        return split_code(document.text, language, template.count_tokens, limit)
    return split_text(document.text, template.count_tokens, limit)
