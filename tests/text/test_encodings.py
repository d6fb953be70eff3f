"""Texts in every encoding that people still have: read as they are, or named; and never as another language's."""

from __future__ import annotations

import codecs
import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import document, documents, found, refused

from memspan.errors import CorpusError
from memspan.text.readers import ReadOptions, Unreadable
from memspan.text.readers.encodings import find_encoding
from memspan.types import Document, Skipped

GERMAN = "Die Größe der Übung hängt von der Prüfung ab, und Köln ist schöner als Düsseldorf."
FRENCH = "Où étiez-vous hier ? Nous avons mangé à la crêperie près de l'église, et ça m'a plu."
POLISH = "Zażółć gęślą jaźń. Jutro będzie świecić słońce, więc pójdziemy do sąsiadów na śniadanie."
CZECH = "Příliš žluťoučký kůň úpěl ďábelské ódy, a zítra půjdeme do školy číst knížku o městě."
RUSSIAN = "Сегодня хорошая погода, и мы пойдём гулять в парк. Завтра будет дождь, нужно взять зонт."
GREEK = "Ο καιρός σήμερα είναι καλός και θα πάμε στο πάρκο. Αύριο θα βρέξει, γι αυτό πάρε ομπρέλα."
JAPANESE = "今日は天気がいいので、公園に散歩に行きます。明日は雨が降るそうです。"
CHINESE = "今天天气很好,我们去公园散步。明天会下雨,所以请带上雨伞。"
TAIWANESE = "今天天氣很好,我們去公園散步。明天會下雨,所以請帶上雨傘。"
KOREAN = "오늘은 날씨가 좋아서 공원에 산책하러 갑니다. 내일은 비가 온다고 합니다."
HEBREW = "היום מזג האוויר יפה ואנחנו הולכים לפארק. מחר ירד גשם ולכן צריך לקחת מטריה."

GUESSED = [
    *((GERMAN, codec) for codec in ("cp1252", "latin-1", "iso8859-15")),
    *((FRENCH, codec) for codec in ("cp1252", "latin-1")),
    *((POLISH, codec) for codec in ("iso8859-2", "cp1250")),
    *((CZECH, codec) for codec in ("iso8859-2", "cp1250")),
    *((RUSSIAN, codec) for codec in ("cp1251", "koi8-r", "cp866")),
    *((GREEK, codec) for codec in ("cp1253", "iso8859-7")),
    *((JAPANESE, codec) for codec in ("shift_jis", "cp932", "euc_jp", "iso2022_jp")),
    *((CHINESE, codec) for codec in ("gbk", "gb18030")),
    (TAIWANESE, "big5"),
    (KOREAN, "euc_kr"),
    (HEBREW, "cp1255"),
    ("Grüße aus Köln", "cp1252"),
    ("Café Müller, 5 € für Grüße", "cp1252"),
    ("“Größe” – naïve façade", "cp1252"),
    *((text, codec) for text in (GERMAN, RUSSIAN) for codec in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")),
    (f"{JAPANESE}\n{JAPANESE}", "utf-16-le"),
    (f"{CHINESE}\n", "utf-16-be"),
    ("plain ASCII", "utf-16-le"),
]


@pytest.mark.parametrize(("text", "codec"), GUESSED)
@pytest.mark.parametrize("repeated", [1, 40])
def test_a_text_without_a_mark_is_read_in_its_encoding_which_is_kept(
    tmp_path: Path, text: str, codec: str, repeated: int
) -> None:
    text = "\n".join([text] * repeated)
    one = document(tmp_path / "a.txt", text.encode(codec))
    assert one.text == text
    assert isinstance(one.metadata["encoding"], str)
    assert text.encode(codec).decode(one.metadata["encoding"]).removeprefix("\ufeff") == text


@pytest.mark.parametrize("text", [GERMAN, CHINESE, "plain ASCII", "𠮷野家"])
@pytest.mark.parametrize(
    ("codec", "mark"),
    [
        ("utf-8", codecs.BOM_UTF8),
        ("utf-8", b""),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
        ("utf-32-le", codecs.BOM_UTF32_LE),
        ("utf-32-be", codecs.BOM_UTF32_BE),
    ],
)
def test_unicode_that_says_so_needs_no_guess(tmp_path: Path, text: str, codec: str, mark: bytes) -> None:
    one = document(tmp_path / "a.txt", mark + text.encode(codec))
    assert one.text == text
    assert "encoding" not in one.metadata


@pytest.mark.parametrize(
    ("head", "codec"),
    [
        ('<meta charset="windows-1251">', "cp1251"),
        ("<META CHARSET=koi8-r>", "koi8-r"),
        ("<meta http-equiv='Content-Type' content='text/html; charset=iso-8859-5'>", "iso8859-5"),
        ('<?xml version="1.0" encoding="KOI8-R"?>', "koi8-r"),
        ("<!-- <meta charset=utf-8> --><meta charset=x-mac-cyrillic>", "mac-cyrillic"),
        ("<meta charset=utf-16>", "utf-8"),
        ("<meta charset=nonsense>", "cp1251"),
        ("<meta charset=hex>", "cp1251"),
        ("<meta charset=utf-8>", "cp1251"),
        ("", "cp1251"),
    ],
)
def test_a_page_is_in_the_encoding_it_names_where_it_is(tmp_path: Path, head: str, codec: str) -> None:
    page = f"<html><head>{head}<title>Привет</title></head><body><p>{RUSSIAN}</p></body></html>"
    one = document(tmp_path / "a.html", page.encode(codec))
    assert (one.title, one.text) == ("Привет", RUSSIAN)


@pytest.mark.parametrize(
    ("label", "codec", "text"),
    [
        ("iso-8859-1", "cp1252", "“Größe” – 5 €"),
        ("gb2312", "gbk", "朱镕基"),
        ("shift_jis", "cp932", "①髙橋"),
        ("euc-kr", "cp949", "똠방각하"),
        ("big5", "big5hkscs", "灣仔蝦餃"),
        ("gbk", "gbk", "联通"),
        ("ascii", "cp1252", "é"),
    ],
)
def test_names_of_encodings_mean_what_browsers_take_them_for(tmp_path: Path, label: str, codec: str, text: str) -> None:
    page = f"<meta charset={label}><p>{text}</p>".encode(codec)
    assert document(tmp_path / "a.html", page).text == text


def test_a_text_names_no_encoding(tmp_path: Path) -> None:
    assert document(tmp_path / "a.txt", "<meta charset=koi8-r> Привет").text == "<meta charset=koi8-r> Привет"


@pytest.mark.parametrize(("name", "wrap"), [("a.txt", "{}"), ("a.jsonl", '{{"text": "{}"}}'), ("a.csv", "text\n{}")])
@pytest.mark.parametrize(("codec", "text"), [("latin-1", "é"), ("gbk", "联通"), ("utf-16-be", "日本"), ("utf-8", "日")])
def test_an_encoding_that_is_given_overrules(tmp_path: Path, name: str, wrap: str, codec: str, text: str) -> None:
    options = ReadOptions(encoding=codec)
    one = document(tmp_path / name, wrap.format(text).encode(codec), options)
    assert one.text == text
    assert "encoding" not in one.metadata, "it is not a guess"


@pytest.mark.parametrize("name", ["nonsense", "hex", "rot13", "", "utf-8\0"])
def test_an_encoding_that_there_is_not_is_an_error(name: str) -> None:
    with pytest.raises(CorpusError, match="there is no text encoding"):
        ReadOptions(encoding=name)


def test_an_encoding_that_does_not_fit_names_the_place(tmp_path: Path) -> None:
    reason = refused(tmp_path / "a.txt", "eins\nzwei ß".encode("latin-1"), ReadOptions(encoding="utf-8"))
    assert reason.startswith("not UTF-8 text at byte 10 (line 2)")
    reason = refused(tmp_path / "a.txt", b"a\x81", ReadOptions(encoding="cp1252"))
    assert reason.startswith("not CP1252 text at byte 1 (line 1)") and "--encoding" in reason


@pytest.mark.parametrize("at", [0, 1000, 100_000])
def test_one_broken_byte_is_named_with_its_place(tmp_path: Path, at: int) -> None:
    line = "Grüße aus Köln und Düsseldorf.\n".encode()
    data = line * 4000
    at = at // len(line) * len(line)
    reason = refused(tmp_path / "a.txt", data[:at] + b"\xff" + data[at:])
    assert reason.startswith(f"not UTF-8 text at byte {at} (line {at // len(line) + 1}); mend it")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.json"])
def test_a_broken_byte_costs_one_record(tmp_path: Path, name: str) -> None:
    lines = ["text", *["Grüße"] * 10] if name == "a.csv" else ['{"text": "Grüße"}'] * 10
    data = "\n".join(lines).encode().replace("ü".encode(), b"\xff", 1)
    bad, *whole = found(tmp_path / name, gzip.compress(data) if name.endswith("gz") else data)
    assert len(whole) == 9 and all(isinstance(item, Document) and item.text == "Grüße" for item in whole)
    assert isinstance(bad, Skipped) and "#" in bad.source and "no text" in bad.reason


def test_records_in_a_legacy_encoding_say_so(tmp_path: Path) -> None:
    text = "id;text\n" + "".join(f"{number};{GERMAN}\n" for number in range(3))
    rows = documents(tmp_path / "a.csv", text.encode("cp1252"))
    assert [(row.text, row.metadata["encoding"]) for row in rows] == [(GERMAN, "cp1252")] * 3


@pytest.mark.parametrize(
    "data",
    [
        b"\x7fELF\x02\x01\x01\0\0\0\0",
        b"\0\x01",
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        bytes(range(256)) * 4,
        b"text and then\0zeros",
        b"\x01\x02\x03\x04 abc",
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.html", "a.jsonl"])
def test_what_is_binary_is_named_so(tmp_path: Path, name: str, data: bytes) -> None:
    assert refused(tmp_path / name, data).startswith(("binary file", "not UTF-8 text"))


@pytest.mark.parametrize("text", ["é", "à è", "ßä", "El niño", "č"])
def test_few_letters_are_read_in_an_encoding_of_the_west_or_named(tmp_path: Path, text: str) -> None:
    codec = "cp1250" if text == "č" else "cp1252"
    (item,) = found(tmp_path / "a.txt", text.encode(codec))
    if isinstance(item, Skipped):
        assert item.reason.startswith("not UTF-8 text at byte") and "--encoding" in item.reason
    else:
        assert item.text == text


@given(st.binary(max_size=200) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
@settings(max_examples=300, derandomize=True, deadline=None)
def test_any_bytes_are_a_text_or_refused(data: bytes) -> None:
    try:
        encoding = find_encoding(data)
    except Unreadable as error:
        assert str(error)
        return
    assert data.decode(encoding.codec) is not None
