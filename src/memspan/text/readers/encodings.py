"""Which encoding a text file is in: as it says, as its bytes show, or by its letters where those leave no doubt."""

from __future__ import annotations

import codecs
import re
import unicodedata
from dataclasses import dataclass

from memspan.text.readers.formats import Unreadable

_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_UTF8 = "utf-8-sig"
_WIDE = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
_BEYOND_ASCII, _BROKEN = re.compile(r"[^\x00-\x7f]+"), re.compile(r"[\udc80-\udcff]+")
_COMMENT = re.compile(rb"<!--.*?-->", re.DOTALL)
_NAMED = re.compile(
    rb"""<\?xml[^>]{0,200}?\bencoding\s*=\s*["'](?P<xml>[\w.:-]+)|<meta[^>]{0,500}?\bcharset\s*=\s*["']?\s*(?P<meta>[\w.:-]+)""",
    re.IGNORECASE,
)
_NAMED_WITHIN = 4096
# What browsers read by these names: more than they stand for, and UTF-8 where a text of single bytes says UTF-16.
_AS_BROWSERS = {
    **{"ascii": "cp1252", "iso8859-1": "cp1252", "iso8859-9": "cp1254", "tis-620": "cp874", "shift_jis": "cp932"},
    **{"gb2312": "gb18030", "gbk": "gb18030", "euc_kr": "cp949", "big5": "big5hkscs", "utf-8": _UTF8},
    **dict.fromkeys(("utf-16", *_WIDE, "utf-32"), _UTF8),
}

_CANDIDATES = (
    *(
        "cp1252",
        "cp1250",
        "iso8859-2",
        "cp1251",
        "koi8-r",
        "koi8-u",
        "cp866",
        "cp1253",
        "iso8859-7",
        "cp1254",
        "cp1255",
    ),
    *("cp1256", "cp1257", "cp1258", "cp874", "cp932", "euc-jis-2004", "gb18030", "big5hkscs", "cp949"),
)
_SAMPLE_BYTES = 100_000
_WEST = 1.2
"""Weight of the encoding that is most used of all, where letters alone do not decide."""
_ODD = 0.25
"""Weight of a reading that no language looks like."""
_OTHER = "\u0370-\u04ff\u0590-\u06ff\u0e00-\u0e7f"
_LATIN = "A-Za-z\u00c0-\u024f"
_ODDITIES = re.compile(  # signs or capitals within words, box drawings, two alphabets in one word
    r"\w[\xa1-\xb4\xb6-\xbf×÷¸˘˙˛ˇ˝]\w|[─-▟]|[a-zß-öø-ÿ][À-ÖØ-ÞĄĽŚŹŤŽŠ]"
    rf"|[{_LATIN}][{_OTHER}]|[{_OTHER}][{_LATIN}]"
)
_OTHER_LETTER, _OTHER_WORD = re.compile(f"[{_OTHER}]"), re.compile(f"[{_OTHER}]{{2}}")
_C1_CONTROLS = re.compile(r"[\x80-\x84\x86-\x9f]")
_WORD = re.compile(rb"%b%b[\x80-\xff]|%b[\x80-\xff]%b|[\x80-\xff]%b%b" % ((rb"[A-Za-z\x80-\xff]",) * 6))
"""Three letters, one of them beyond ASCII: fewer say nothing of the language."""
_CONTROLS = bytes({*range(32)} - {*b"\t\n\v\f\r\x1b"})
_MOST_CONTROLS = 0.01
_BINARY = "binary file"
_MEND = "mend it, or name its encoding with --encoding"


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a file's bytes become text.

    Attributes:
        codec: Python's name; it drops a byte order mark.
        is_guess: only the letters speak for it.
    """

    codec: str
    is_guess: bool = False


def find_encoding(
    data: bytes,
    given: str | None = None,
    *,
    names_encoding: bool = False,
    is_tolerant: bool = False,
    is_cut: bool = False,
) -> Encoding:
    """The encoding of a file that begins with `data`, or is it.

    Args:
        given: the encoding, whatever the file says.
        names_encoding: the file may name its encoding, as HTML and XML do.
        is_tolerant: UTF-8 with some broken bytes is UTF-8.
        is_cut: the file goes on, so the last character may be cut off.

    Raises:
        Unreadable: it is binary, broken, or may be one of several; says which, and where.
    """
    if given is not None:
        return Encoding(_UTF8 if codecs.lookup(given).name == "utf-8" else given)
    for mark, codec in _BOMS:
        if data.startswith(mark):
            return Encoding(codec)
    named = _named(data) if names_encoding else None
    if named is not None and _decoded(data, named, is_cut) is not None:
        return Encoding(named)
    has_controls = len(data) - len(data.translate(None, _CONTROLS)) > _MOST_CONTROLS * len(data)
    if b"\0" in data or has_controls:
        return _wide(data, is_cut)
    if b"\x1b$" in data and _decoded(data, "iso2022_jp_2", is_cut) is not None:
        return Encoding("iso2022_jp_2", is_guess=True)
    text = _decoded(data, _UTF8, is_cut)
    if text is None and not _is_broken_utf8(data):
        return _guess(data, is_cut)
    if text is None and not is_tolerant:
        raise Unreadable(f"{broken(data)}; {_MEND}")
    return Encoding(_UTF8)


def broken(data: bytes, codec: str = _UTF8) -> str:
    """Why a file cannot be decoded, and where."""
    try:
        data.decode(codec)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return f"not {codec.removesuffix('-sig').upper()} text at byte {error.start} (line {line})"
    return f"not {codec} text"


def _named(data: bytes) -> str | None:
    """The codec that an HTML page or an XML file names for itself, if there is one."""
    match = _NAMED.search(_COMMENT.sub(b"", data[:_NAMED_WITHIN]))
    if match is None:
        return None
    label = (match["xml"] or match["meta"]).decode("ascii", "replace").lower()
    for name in (label, label.removeprefix("x-")):
        try:
            codec = codecs.lookup(name).name
            "a".encode(codec)
        except (LookupError, ValueError):
            continue
        return _AS_BROWSERS.get(codec, codec)
    return None


def _decoded(data: bytes, codec: str, is_cut: bool) -> str | None:
    """The text, if all bytes are of this encoding."""
    try:
        return codecs.getincrementaldecoder(codec)().decode(data, final=not is_cut)
    except ValueError:
        return None


_FEWEST_WIDE = 4
"""Letters: two bytes, one of them zero, are hardly a text."""


def _wide(data: bytes, is_cut: bool) -> Encoding:
    """UTF-16 or UTF-32 without a byte order mark: the reading whose characters are from the fewest blocks."""
    readings = []
    for codec in _WIDE:
        text = _decoded(data[:_SAMPLE_BYTES], codec, is_cut or len(data) > _SAMPLE_BYTES)
        if text and all(map(_is_printable, set(text))) and (len(text) >= _FEWEST_WIDE or not text.isalpha()):
            readings.append((len({ord(char) >> 8 for char in text}), codec))
    readings.sort()
    if not readings or (len(readings) > 1 and readings[0][0] == readings[1][0]):
        raise Unreadable(_BINARY)
    return Encoding(readings[0][1], is_guess=True)


def _is_printable(char: str) -> bool:
    return char in "\t\n\r\f\v\ufeff" or unicodedata.category(char) not in ("Cc", "Cn", "Co", "Cs")


def _is_broken_utf8(data: bytes) -> bool:
    """Whether most of what is not ASCII is UTF-8."""
    text = data.decode(errors="surrogateescape")
    beyond_ascii = "".join(_BEYOND_ASCII.findall(text))
    return len(beyond_ascii) >= 3 * sum(map(len, _BROKEN.findall(beyond_ascii)))


def _guess(data: bytes, is_cut: bool) -> Encoding:
    """The encoding whose reading is like a language, clearly more so than any other reading."""
    import chardet  # takes a while

    lines = [line for line in data.split(b"\n") if not line.isascii()]
    sample = b"\n".join(lines)[:_SAMPLE_BYTES]
    readings: dict[str, tuple[float, str]] = {}
    for found in chardet.detect_all(sample, ignore_threshold=True, include_encodings=_CANDIDATES):
        codec, weight = codecs.lookup(found["encoding"] or _UTF8).name, found["confidence"]
        text = _decoded(sample, codec, True)
        if text and not _C1_CONTROLS.search(text) and _decoded(data, codec, is_cut) is not None:
            weight *= (_WEST if codec == "cp1252" else 1) * (_ODD if _is_odd(text) else 1)
            readings[text] = max(readings.get(text, (0.0, "")), (weight, codec))
    best = sorted(((*value, text) for text, value in readings.items()), reverse=True)[:3]
    num_letters = len(sample) - len(sample.translate(None, bytes(range(128, 256))))
    if not best:
        raise Unreadable(f"{broken(data)}, nor in any other encoding that is known; {_MEND}")
    # A few letters say little, so they must say it clearly.
    is_close = len(best) > 1 and best[0][0] < (1.1 + 1 / num_letters) * best[1][0]
    is_lone = not _WORD.search(sample) and any(char.isalpha() and not char.isascii() for char in best[0][2])
    if is_close or is_lone:
        names = ", ".join(codec for _, codec, _ in best)
        raise Unreadable(f"{broken(data)}, and it may be {names}; name its encoding with --encoding")
    return Encoding(best[0][1], is_guess=True)


def _is_odd(text: str) -> bool:
    is_lone = _OTHER_LETTER.search(text) and not _OTHER_WORD.search(text)
    return bool(is_lone or _ODDITIES.search(text))
