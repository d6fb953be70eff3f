"""Pages of a text: a form feed parts them where the document's metadata give their number as `pages`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from memspan.types import JSON, Span

PAGE_BREAK = "\f"


def paged(texts: Iterable[str]) -> str:
    """Texts of pages as one text."""
    return f"\n\n{PAGE_BREAK}".join(text.replace(PAGE_BREAK, " ").strip() for text in texts)


def pages_of(text: str, span: Span, metadata: Mapping[str, JSON]) -> tuple[int, ...]:
    """Numbers, from 1, of the pages on which a span of a document's text stands; none where the text has no pages.

    Page breaks in the text part pages where the metadata's `pages` is their number; a text that was changed has none.
    """
    pages = metadata.get("pages")
    if type(pages) is not int or pages < 1 or text.count(PAGE_BREAK) != pages - 1:
        return ()
    start, end = span.start, span.end
    passage = text[start:end]
    first = 1 + text.count(PAGE_BREAK, 0, start + len(passage) - len(passage.lstrip()))
    last = 1 + text.count(PAGE_BREAK, 0, start + len(passage.rstrip()))
    return tuple(range(first, last + 1))


def page_label(pages: Sequence[int]) -> str:
    """Pages as people write them: "page 3", "pages 3-4"; empty for none."""
    if len(pages) < 2:
        return f"page {pages[0]}" if pages else ""
    return f"pages {pages[0]}-{pages[-1]}"
