"""PDF."""

from __future__ import annotations

from pathlib import Path

from memspan.text.readers.formats import FORMATS, Content, OneText, Unreadable


def _read_pdf(path: Path) -> Content:
    import pypdf  # takes as long as all of `memspan ls`

    try:
        reader = pypdf.PdfReader(path)
        if reader.is_encrypted:
            raise Unreadable("encrypted PDF")
        pages = [page.extract_text().strip() for page in reader.pages]
        title = (reader.metadata.title if reader.metadata else None) or ""
    except (Unreadable, OSError):
        raise
    except Exception as error:  # pypdf meets damaged files with nearly every built-in exception
        raise Unreadable(f"damaged PDF: {error}") from error
    if not any(pages):
        raise Unreadable("PDF without text (scanned pages need text recognition first)")
    return Content(_repair_glyphs("\n\n".join(pages)), _repair_glyphs(title), {"pages": len(pages)})


def _repair_glyphs(text: str) -> str:
    """Mend what some PDF fonts map their glyphs to: surrogate pairs are joined, lone ones replaced, NULs dropped."""
    return text.replace("\0", "").encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


FORMATS.register("pdf", OneText(_read_pdf))
