"""Text recognition, by a program in the place of tesseract that says what it was asked."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

import pytest
from fpdf import FPDF

from memspan.errors import CorpusError
from memspan.text.corpus import read_paths
from memspan.text.readers import ReadOptions, ocr
from memspan.types import Document, Skipped

FAKE = """\
import sys, time
if sys.argv[1:] == ["--list-langs"]:
    sys.exit(print('List of available languages in "/data/" (5):\\nchi_sim\\ndeu\\neng\\nosd\\nscript/Latin'))
image, out, flag, language = sys.argv[1:]
data = open(image, "rb").read()
if b"slow" in data:
    time.sleep(60)
if b"bad" in data:
    sys.exit("Error in pixReadStream\\nImage file cannot be read!")
if b"blank" not in data:
    print(f"{out} {flag} {language} {data[:3].decode()} gr\\u00fc\\u00dfe\\f".encode().decode("utf-8"), flush=True)
"""


@pytest.fixture
def tesseract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "fake.py").write_text(FAKE, encoding="utf-8")
    if os.name == "nt":
        (folder / "tesseract.bat").write_text(f'@"{sys.executable}" "{folder}\\fake.py" %*\n', encoding="utf-8")
    else:
        program = folder / "tesseract"
        program.write_text(
            f'#!/bin/sh\nPYTHONUTF8=1 exec "{sys.executable}" "{folder}/fake.py" "$@"\n', encoding="utf-8"
        )
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


OCR = {"ocr": True, "ocr_language": "deu+eng"}


def found(path: Path, **options: object) -> list[Document | Skipped]:
    return list(read_paths([path], options=ReadOptions(**options)))  # type: ignore[arg-type]


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.usefixtures("tesseract")
@pytest.mark.parametrize("extension", ["png", "jpg", "JPEG", "tif", "webp"])
def test_the_text_in_an_image(tmp_path: Path, extension: str) -> None:
    (one,) = found(written(tmp_path / f"scan.{extension}", b"png data"), **OCR)
    assert isinstance(one, Document)
    assert one.text == "stdout -l deu+eng png grüße"
    assert (one.title, one.metadata["ocr"]) == ("scan", "deu+eng")


@pytest.mark.usefixtures("tesseract")
@pytest.mark.parametrize(
    ("data", "reason"), [(b"bad", "Image file cannot be read!"), (b"blank", "without text that tesseract recognizes")]
)
def test_an_image_that_is_not_recognised_is_named_and_the_next_file_read(
    tmp_path: Path, data: bytes, reason: str
) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    written(folder / "a.png", data)
    written(folder / "b.png", b"png")
    skipped, document = found(folder, **OCR)
    assert isinstance(skipped, Skipped) and isinstance(document, Document)
    assert reason in skipped.reason


@pytest.mark.usefixtures("tesseract")
def test_an_image_that_takes_too_long_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "SECONDS_PER_IMAGE", 0.3)
    (one,) = found(written(tmp_path / "a.png", b"slow"), **OCR)
    assert isinstance(one, Skipped)
    assert "takes tesseract longer than" in one.reason


@pytest.mark.usefixtures("tesseract")
def test_images_without_the_option_are_named_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    written(folder / "a.png", b"\x89PNG\r\n\x1a\n")
    for path in (folder, folder / "a.png"):
        (one,) = found(path)
        assert isinstance(one, Skipped)
        assert "--ocr reads the text in it" in one.reason


def scanned(path: Path, *pages: str) -> Path:
    """A PDF of pages with a text, or where it is empty with a drawing; "-" is an empty page."""
    pdf = FPDF()
    for text in pages:
        pdf.add_page()
        pdf.set_font("Helvetica")
        if not text:
            pdf.rect(10, 10, 50, 50, style="F")
        elif text != "-":
            pdf.text(20, 50, text)
    pdf.output(str(path))
    return path


@pytest.mark.usefixtures("tesseract")
def test_pages_of_a_pdf_without_text_are_recognised_at_their_places(tmp_path: Path) -> None:
    path = scanned(tmp_path / "a.pdf", "One", "", "-", "Four")
    (one,) = found(path, **OCR)
    assert isinstance(one, Document)
    assert one.text == "One\n\n\fstdout -l deu+eng P5  grüße\n\n\f\n\n\fFour"
    assert (one.metadata["pages"], one.metadata["pages_without_text"], one.metadata["ocr"]) == (4, [2], "deu+eng")
    (plain,) = found(path)
    assert isinstance(plain, Document)
    assert (plain.text, plain.metadata["pages_without_text"]) == ("One\n\n\f\n\n\f\n\n\fFour", [2])


@pytest.mark.usefixtures("tesseract")
def test_a_pdf_of_scans_and_a_pdf_of_nothing(tmp_path: Path) -> None:
    (scan,) = found(scanned(tmp_path / "a.pdf", ""), **OCR)
    (nothing,) = found(scanned(tmp_path / "b.pdf", "-"), **OCR)
    (text,) = found(scanned(tmp_path / "c.pdf", "Text"), **OCR)
    assert isinstance(scan, Document) and isinstance(nothing, Skipped) and isinstance(text, Document)
    assert "ocr" not in text.metadata


@pytest.mark.usefixtures("tesseract")
def test_images_in_an_archive_are_recognised(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", b"png")
    (one,) = found(tmp_path / "x.zip", **OCR)
    assert isinstance(one, Document)
    assert one.external_id.endswith("x.zip/a.png")


def test_without_tesseract_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CorpusError, match="apt install tesseract-ocr"):
        ReadOptions(ocr=True)


@pytest.mark.usefixtures("tesseract")
@pytest.mark.parametrize("language", ["", "-psm 0", "eng --help", "eng;ls", "../eng", "eng+"])
def test_a_language_is_a_name_and_no_other_argument(language: str) -> None:
    with pytest.raises(CorpusError, match="ocr-language"):
        ReadOptions(ocr=True, ocr_language=language)


@pytest.mark.usefixtures("tesseract")
@pytest.mark.parametrize("language", ["eng", "deu+eng", "chi_sim", "script/Latin"])
def test_languages_as_tesseract_names_them(language: str) -> None:
    assert ReadOptions(ocr=True, ocr_language=language).ocr_language == language


@pytest.mark.usefixtures("tesseract")
@pytest.mark.parametrize(
    ("language", "missing"), [("fra", "fra"), ("eng+tha", "tha"), ("Deu", "Deu"), ("data", "data")]
)
def test_a_language_that_is_not_installed_is_named_at_once(language: str, missing: str) -> None:
    with pytest.raises(CorpusError, match=rf"cannot read {missing} here, only chi_sim, deu.*tesseract-ocr-{missing}"):
        ReadOptions(ocr=True, ocr_language=language)
