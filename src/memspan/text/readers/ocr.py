"""Text recognition, by the program tesseract where it is installed: images, and pages of PDFs that are images."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import cast

from memspan.errors import CorpusError
from memspan.text.paging import PAGE_BREAK, paged
from memspan.text.readers.formats import Content, Unreadable
from memspan.text.readers.isolated import isolated
from memspan.text.readers.pdf import WITHOUT_TEXT, draw_page, read_pages
from memspan.types import JSON

SECONDS_PER_IMAGE = 120.0
"""What tesseract may take for a page; a dense one takes some 10 s."""

_LANGUAGES = re.compile(r"\w+(?:/\w+)?(?:\+\w+(?:/\w+)?)*", re.ASCII)


def check_tesseract(language: str) -> None:
    """
    Raises:
        CorpusError: tesseract is not installed, or not for these languages.
    """
    if not _LANGUAGES.fullmatch(language):
        raise CorpusError(f"--ocr-language takes tesseract's names as eng or deu+eng, not {language!r}")
    if shutil.which("tesseract") is None:
        raise CorpusError(
            "--ocr needs the program tesseract, which is not installed; install it (apt install tesseract-ocr, "
            "brew install tesseract, winget install tesseract-ocr.tesseract), or leave --ocr out"
        )
    known = _run("--list-langs").stdout.decode(errors="replace").split("\n")[1:]
    missing = [name for name in language.split("+") if name not in map(str.strip, known)]
    if missing:
        raise CorpusError(
            f"tesseract cannot read {', '.join(missing)} here, only {', '.join(filter(None, map(str.strip, known)))}; "
            f"install its data (apt install tesseract-ocr-{missing[0]}, brew install tesseract-lang) or name another "
            "language"
        )


def read_image(path: Path, language: str) -> Content:
    """The text in an image.

    Raises:
        Unreadable: tesseract finds none, or does not read the image.
    """
    text = _recognised(path, language)
    if not text:
        raise Unreadable("an image without text that tesseract recognizes")
    return Content(text, metadata={"ocr": language})


def read_pdf(path: Path, language: str) -> Content:
    """A PDF with the text in those of its pages that have none but show something.

    Raises:
        Unreadable: as of PDFs, or there is no text at all, or tesseract does not read a page.
    """
    content = read_pages(path)
    numbers = cast(list[int], content.metadata.get(WITHOUT_TEXT, []))
    pages = content.text.split(PAGE_BREAK)
    with tempfile.TemporaryDirectory(prefix="memspan-", ignore_cleanup_errors=True) as folder:
        for number in numbers:
            image = Path(folder) / "page.pgm"
            isolated(f"{draw_page.__module__}:draw_page", str(path), number - 1, str(image))
            pages[number - 1] = _recognised(image, language)
    text = paged(pages)
    if not text.strip():
        raise Unreadable("PDF without text that tesseract recognizes")
    recognised: dict[str, JSON] = {"ocr": language} if numbers else {}
    return replace(content, text=text, metadata={**content.metadata, **recognised})


def _recognised(image: Path, language: str) -> str:
    try:
        done = _run(str(image.resolve()), "stdout", "-l", language)
    except subprocess.TimeoutExpired as error:
        raise Unreadable(f"takes tesseract longer than {SECONDS_PER_IMAGE:.0f} s to read") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
        raise Unreadable(f"not read by tesseract: {said[-1]}")
    return done.stdout.decode(errors="replace").replace(PAGE_BREAK, "\n").replace("\0", "").strip()


def _run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [shutil.which("tesseract") or "tesseract", *arguments],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=SECONDS_PER_IMAGE,
        check=False,
    )
