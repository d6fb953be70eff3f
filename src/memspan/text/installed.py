"""The packages of the running Python as documents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions

from memspan.types import Document

_NUM_DESCRIPTION_WORDS = 200

# Markup whose removal leaves prose, in this order: what holds a pattern further down goes before it.
_MARKUP: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.MULTILINE), replacement)
    for pattern, replacement in (
        (r"`([^`<\n]*?)\s*<[^`>\n]*>`_{1,2}", r"\1"),  # rst links
        (r"(?s:<!--.*?-->)|</?[A-Za-z][^<>]*>", " "),  # HTML, and links in angle brackets
        (r"!\[[^\]]*\](?:\([^)]*\)|\[[^\]]*\])", " "),  # Markdown images
        (r"\[([^\[\]]*)\](?:\([^)]*\)|\[[^\]]*\])", r"\1"),  # Markdown links
        (r"^[ \t]*\[[^\]]+\]:[ \t]+\S.*$", ""),  # Markdown link targets
        (r"^[ \t]*(?:```|~~~).*$|^#{1,6}[ \t]+", ""),  # Markdown code fences and headings
        (r"^[ \t]*\.\.(?:[ \t].*)?$(?:\n[ \t]+(?::|https?:).*$)*", ""),  # rst directives and their options
        (r"\|[^|\s][^|\n]*\|_{0,2}", " "),  # rst substitutions
        (r":[\w:+.-]+:`", "`"),  # rst roles
        (r"^[ \t]*([=\-~^\"'*+#_])\1{2,}[ \t]*$", ""),  # underlines of headings, rules
        (r"`+_{0,2}|\*\*", ""),  # code and bold
    )
)


def installed_packages() -> Iterator[Document]:
    """Yield one document for each distribution of the running Python, sorted by normalized name.

    Its text is the summary and the beginning of the description, without most of the markup. A distribution with
    neither is left out; of several by one name, the first on `sys.path` counts, as it does for `import`.
    """
    by_name: dict[str, Distribution] = {}
    for distribution in distributions():
        name = distribution.metadata["Name"]
        if name:  # an interrupted uninstall leaves metadata without one
            by_name.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution)
    for _, distribution in sorted(by_name.items()):
        document = _document_of_package(distribution)
        if document:
            yield document


def _document_of_package(distribution: Distribution) -> Document | None:
    fields = distribution.metadata.json
    name, summary, description = (str(fields.get(key) or "") for key in ("name", "summary", "description"))
    words = _prose(description).split()[:_NUM_DESCRIPTION_WORDS]
    if not summary and not words:
        return None
    text = f"{name} is a Python package. {summary}".rstrip() + "\n\n" + " ".join(words)
    return Document(f"package:{name}", text.rstrip(), name, {"version": distribution.version})


def _prose(markup: str) -> str:
    """Remove what is not read aloud from Markdown or reStructuredText, by patterns that suit most package pages."""
    for pattern, replacement in _MARKUP:
        markup = pattern.sub(replacement, markup)
    return markup
