"""Mail: a letter is a document, and so is every attachment that can be read."""

from __future__ import annotations

import email
import mailbox
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from email.message import EmailMessage, MIMEPart
from email.policy import default as policy
from pathlib import Path
from typing import cast

from memspan.text.readers.formats import (
    FORMATS,
    ContainerReader,
    Content,
    DecodedText,
    FilePart,
    ReadOptions,
    Unreadable,
    damage_named,
)
from memspan.text.readers.opening import decode
from memspan.text.readers.unpacking import name_on_disk
from memspan.types import JSON

_HEADERS = ("from", "to", "cc")
_NOT_IN_IDS = re.compile(r"[\x00-\x20<>\x7f/]+")


def read_letter(path: Path, options: ReadOptions) -> Iterator[FilePart]:
    """The mail in a file, under the file's own name, and its attachments."""
    yield from _letter_parts(path.read_bytes(), "", options)


def read_mailbox(path: Path, options: ReadOptions) -> Iterator[FilePart]:
    """The mails of a mailbox, each by its Message-ID, and their attachments."""
    with path.open("rb") as file:
        if not file.read(5).startswith(b"From "):
            raise Unreadable("not a mailbox by its content: its first line does not begin with 'From '")
    seen: Counter[str] = Counter()
    box = mailbox.mbox(path, create=False)
    try:
        for number, key in enumerate(box.iterkeys(), start=1):
            data = box.get_bytes(key)
            name = _message_id(data) or str(number)
            seen[name] += 1
            yield from _letter_parts(data, name if seen[name] == 1 else f"{name}~{seen[name]}", options)
    finally:
        box.close()


def _message_id(data: bytes) -> str:
    found = re.search(rb"^message-id:\s*<?([^\r\n>]+)", data.split(b"\n\n", 1)[0], re.IGNORECASE | re.MULTILINE)
    return _NOT_IN_IDS.sub("_", found[1].decode("ascii", "replace").strip()) if found else ""


def _letter_parts(data: bytes, name: str, options: ReadOptions) -> Iterator[FilePart]:
    try:
        with damage_named("mail"):
            letter = cast(EmailMessage, email.message_from_bytes(data, policy=policy))
            content, attachments = _content(letter), list(_attachments(letter))
    except Unreadable as error:
        yield FilePart(name, error)
        return
    yield FilePart(name, content if content.text.strip() else Unreadable("a mail without text"))
    prefix = f"{name}/" if name else ""
    for attached, data in attachments:
        yield from _attachment_parts(f"{prefix}{attached}", attached, data, options)


def _content(letter: EmailMessage) -> Content:
    shown = {name: _header(letter, name) for name in _HEADERS}
    heads = [f"{name.capitalize()}: {value}" for name, value in shown.items() if value]
    body = _body(letter)
    metadata: dict[str, JSON] = {name: value for name, value in shown.items() if value}
    names: list[JSON] = [name for name, _ in _attachments(letter)]
    metadata |= {"attachments": names} if names else {}
    if identity := _header(letter, "message-id").strip("<>"):
        metadata["message_id"] = identity
    subject = _header(letter, "subject")
    text = "\n".join(heads) + f"\n\n{body}" if body.strip() or subject else ""
    if date := _header(letter, "date"):
        metadata["date"] = date
    return Content(_plain(text), _plain(subject), metadata)


def _header(letter: EmailMessage, name: str) -> str:
    try:
        return _plain(" ".join(str(letter.get(name, "")).split()))
    except Exception:  # email's parser of headers fails over malformed ones with nearly every built-in exception
        return ""


def _plain(text: str) -> str:
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def _body(letter: EmailMessage) -> str:
    """The text part, or the text of the HTML part where that is blank."""
    plain = letter.get_body(("plain",))
    text = _text_of(plain) if plain is not None else ""
    page = letter.get_body(("html",))
    if not text.strip() and page is not None:
        reader = FORMATS["html"]
        assert isinstance(reader, DecodedText)
        return reader.read(_text_of(page)).text
    return text


def _text_of(part: MIMEPart) -> str:
    try:
        return str(part.get_content())
    except (LookupError, UnicodeError):  # a character set of no known name
        return decode(cast(bytes, part.get_payload(decode=True) or b""))[0]


def _attachments(letter: EmailMessage) -> Iterator[tuple[str, bytes]]:
    """Names and contents of what is attached, without the pictures that a page shows."""
    page = letter.get_body(("html",))
    shown = _text_of(page) if page is not None else ""
    for number, part in enumerate(_leaves(letter)):
        is_mail = part.get_content_type() == "message/rfc822"
        name = _plain(part.get_filename() or (f"mail-{number}.eml" if is_mail else ""))
        identity = str(part.get("content-id", "")).strip("<> ")
        is_picture = part.get_content_maintype() == "image"
        if not name or (is_picture and (part.get_content_disposition() != "attachment" or f"cid:{identity}" in shown)):
            continue
        if is_mail:
            name = name if name.lower().endswith(".eml") else f"{name}.eml"
            data = b"".join(bytes(one) for one in cast(list[EmailMessage], part.get_payload()))
        else:
            data = cast(bytes, part.get_payload(decode=True) or b"")
        yield re.sub(r"[\\/\x00-\x1f]", "_", name), data


def _leaves(part: EmailMessage) -> Iterator[EmailMessage]:
    """The parts that hold no others of this mail."""
    if part.get_content_maintype() == "multipart" and part.is_multipart():
        for inner in cast(list[EmailMessage], part.get_payload()):
            yield from _leaves(inner)
    else:
        yield part


def _attachment_parts(name: str, file: str, data: bytes, options: ReadOptions) -> Iterator[FilePart]:
    from memspan.text.readers import why_unsupported

    reason = why_unsupported(Path(file), options)
    if reason:
        yield FilePart(name, Unreadable(reason))
        return
    with tempfile.TemporaryDirectory(prefix="memspan-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / name_on_disk(file)
        path.write_bytes(data)
        yield FilePart(name, path)


LETTER = ContainerReader(read_letter)
MAILBOX = ContainerReader(read_mailbox)
