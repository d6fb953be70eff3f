"""What a file is by its first bytes, where its name says something else."""

from __future__ import annotations

from memspan.text.readers.formats import Unreadable

IMAGES = frozenset({"png", "jpg", "jpeg", "gif", "bmp", "tif", "tiff", "webp", "pnm", "jp2"})
"""Extensions of the images that text recognition reads."""

_SIGNATURES = (
    (b"%PDF-", "a PDF; name it .pdf"),
    (b"PK\x03\x04", "a zip archive or an office document; name it as what it is (.zip, .docx, .xlsx, .epub ...)"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"{\\rtf", "an RTF document; name it .rtf"),
    (b"\x1f\x8b", "a gzip file; name it .gz"),
    (b"\xfd7zXZ\0", "an xz file; name it .xz"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file; name it .zst"),
    (b"BZh", "a bzip2 file; name it .bz2"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive; unpack it"),
    (b"Rar!\x1a\x07", "a RAR archive; unpack it"),
    (b"\xd0\xcf\x11\xe0", "an encrypted or older office document; save it without a password as .docx, .xlsx or .pptx"),
    (b"\x89PNG", "an image; --ocr reads the text in it"),
    (b"\xff\xd8\xff", "an image; --ocr reads the text in it"),
    (b"GIF8", "an image; --ocr reads the text in it"),
    (b"II*\0", "an image; --ocr reads the text in it"),
    (b"MM\0*", "an image; --ocr reads the text in it"),
    (b"SQLite format 3\0", "an SQLite database; export its texts"),
    (b"PAR1", "a Parquet file; export it as .jsonl"),
    (b"\x7fELF", "a program"),
)


def kind_of(head: bytes) -> str:
    """What a file is that begins with `head`, and what to do about it; empty where it may be text."""
    if head[257:262] == b"ustar":
        return "a tar archive; name it .tar"
    return next((kind for signature, kind in _SIGNATURES if head.startswith(signature)), "")


def refuse_other_kinds(head: bytes) -> None:
    """
    Raises:
        Unreadable: what should be text begins as a file of another kind.
    """
    kind = kind_of(head)
    if kind:
        raise Unreadable(f"binary file: by its content {kind}")
