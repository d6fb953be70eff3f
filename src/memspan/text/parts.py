"""A document's parts: the spans of its text that are encoded, each under an id of its own."""

from __future__ import annotations

from memspan.text.definitions import CODE_KEY, split_code
from memspan.text.splitter import split_text
from memspan.text.template import WIDEST_ID, PromptTemplate
from memspan.types import Document, Span


def split_document(document: Document, template: PromptTemplate, max_document_tokens: int) -> list[Span]:
    """The parts a text is encoded in: each, with title, id and template, at most `max_document_tokens` long.

    At least half of that is left to the text, so a title longer than the other half makes longer documents.
    Source code is cut at its definitions, also where it would fit as a whole.
    """
    half = max(max_document_tokens // 2, 1)
    text, language = document.text, document.metadata.get(CODE_KEY)
    is_code = isinstance(language, str)
    fits = template.fits(f"{document.title}\n{text}", max_document_tokens) or template.count_tokens(text) <= half
    if fits and not is_code:
        return [Span(0, len(text))]
    room = max(max_document_tokens - len(template.document(WIDEST_ID, f"{document.title}\n")), half)
    if is_code:
        return split_code(text, str(language), template.count_tokens, room)
    return split_text(text, template.count_tokens, room)
