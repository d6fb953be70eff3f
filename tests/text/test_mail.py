"""Mail: letters, their parts and attachments, and mailboxes."""

from __future__ import annotations

import io
import zipfile
from email.message import EmailMessage
from pathlib import Path

import pytest

from memspan.text.corpus import read_paths
from memspan.types import Document, Skipped


def letter(text: str = "An otter.", **headers: str) -> EmailMessage:
    mail = EmailMessage()
    for name, value in headers.items():
        mail[name.replace("_", "-")] = value
    mail.set_content(text)
    return mail


def read(path: Path, data: bytes) -> tuple[list[Document], list[Skipped]]:
    path.write_bytes(data)
    found = list(read_paths([path]))
    return [one for one in found if isinstance(one, Document)], [one for one in found if isinstance(one, Skipped)]


def read_one(tmp_path: Path, data: bytes) -> Document:
    (found,), skipped = read(tmp_path / "a.eml", data)
    assert not skipped
    return found


HEADERS = {
    "From": "Ann <ann@example.com>",
    "To": "Bo <bo@example.com>",
    "Subject": "The plan",
    "Date": "Fri, 01 Mar 2024 10:00:00 +0200",
    "Message_ID": "<1@example.com>",
}


def test_a_mail_is_a_document(tmp_path: Path) -> None:
    found = read_one(tmp_path, letter("We meet at noon.\n", **HEADERS).as_bytes())
    assert found.external_id == f"{tmp_path.name}/a.eml"
    assert (found.title, found.date) == ("The plan", "2024-03-01T10:00:00+02:00")
    assert found.text == "From: Ann <ann@example.com>\nTo: Bo <bo@example.com>\n\nWe meet at noon.\n"
    assert found.metadata["from"] == "Ann <ann@example.com>"
    assert found.metadata["message_id"] == "1@example.com"


@pytest.mark.parametrize(
    ("raw", "title", "said"),
    [
        (b"Subject: =?utf-8?b?R3LDvMOfZQ==?=\n\nText", "Grüße", "Text"),
        (b"Subject: =?iso-8859-1?q?Gr=FC=DFe?=\n\nText", "Grüße", "Text"),
        (b"Subject: a\n  long one\n\nText", "a long one", "Text"),
        (b"SUBJECT: x\r\nFROM: a@b.c\r\n\r\nText\r\n", "x", "Text"),
        (
            b"Subject: x\nContent-Type: text/plain; charset=iso-8859-1\n"
            b"Content-Transfer-Encoding: quoted-printable\n\nGr=FC=DFe",
            "x",
            "Grüße",
        ),
        (
            b"Subject: x\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: base64\n\nR3LDvMOfZQ==",
            "x",
            "Grüße",
        ),
        (b"Subject: x\nContent-Type: text/plain; charset=no-such-set\n\nPlain words", "x", "Plain words"),
        (b"Subject: x\nContent-Type: text/html\n\n<p>One</p><script>no</script><p>Two</p>", "x", "One\n\nTwo"),
        (b"Subject: x\nDate: nonsense\n\nText", "x", "Text"),
        (b'Subject: x\nFrom: "broken <\n\nText', "x", "Text"),
        (b"Subject: only this\n\n", "only this", ""),
    ],
)
def test_headers_and_bodies_of_many_forms(tmp_path: Path, raw: bytes, title: str, said: str) -> None:
    documents, _ = read(tmp_path / "a.eml", raw)
    assert [one.title for one in documents] == ([title] if documents else [])
    assert all(said in one.text for one in documents)
    assert documents or title == "only this"


def test_a_date_that_is_none_is_reported_and_the_mail_kept(tmp_path: Path) -> None:
    documents, skipped = read(tmp_path / "a.eml", b"Subject: x\nDate: nonsense\n\nText")
    assert [one.date for one in documents] == [None]
    assert "nonsense" in skipped[0].reason


def test_the_text_part_comes_before_the_html_part(tmp_path: Path) -> None:
    mail = letter("Plain.", Subject="x")
    mail.add_alternative("<p>Page.</p>", subtype="html")
    assert "Plain." in read_one(tmp_path, mail.as_bytes()).text
    blank = letter(" \n", Subject="x")
    blank.add_alternative("<p>Page.</p>", subtype="html")
    assert "Page." in read_one(tmp_path, blank.as_bytes()).text


def test_attachments_are_documents_of_their_own(tmp_path: Path) -> None:
    mail = letter("See the files.", **HEADERS)
    mail.add_attachment(b"# Notes\n\nText", maintype="text", subtype="markdown", filename="notes.md")
    mail.add_attachment(b"\x89PNG", maintype="image", subtype="png", filename="scan.png")
    mail.add_attachment(b"\0\1", maintype="application", subtype="x", filename="../../odd.bin")
    documents, skipped = read(tmp_path / "a.eml", mail.as_bytes())
    start = f"{tmp_path.name}/a.eml"
    assert [one.external_id for one in documents] == [start, f"{start}/notes.md"]
    assert documents[1].title == "Notes"
    assert documents[0].metadata["attachments"] == ["notes.md", "scan.png", ".._.._odd.bin"]
    assert [Path(one.source).name for one in skipped] == ["scan.png", ".._.._odd.bin"]


def test_pictures_in_a_page_are_not_attachments(tmp_path: Path) -> None:
    mail = letter("x", Subject="x")
    mail.add_alternative("<p>See <img src='cid:logo'></p>", subtype="html")
    page = mail.get_body(("html",))
    assert page is not None
    page.add_related(b"\x89PNG", "image", "png", cid="<logo>", filename="logo.png")
    assert "attachments" not in read_one(tmp_path, mail.as_bytes()).metadata


def test_a_mail_in_a_mail_and_an_archive_in_it_are_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("in.txt", "In the archive")
    inner = letter("The first letter.", Subject="first")
    inner.add_attachment(buffer.getvalue(), maintype="application", subtype="zip", filename="x.zip")
    mail = letter("Forwarded.", Subject="Fwd")
    mail.add_attachment(inner)
    documents, skipped = read(tmp_path / "a.eml", mail.as_bytes())
    assert not skipped
    assert [one.text.splitlines()[-1] for one in documents] == ["Forwarded.", "The first letter.", "In the archive"]


def mailbox(*mails: EmailMessage) -> bytes:
    lines = (f"From ann@example.com Fri Mar  1 10:00:00 2024\n{mail.as_string()}\n" for mail in mails)
    return "".join(lines).encode()


def test_a_mailbox_is_a_document_for_each_mail_by_its_message_id(tmp_path: Path) -> None:
    mails = [letter(f"Letter {number}", Subject=f"s{number}", Message_ID=f"<{number}@x/y>") for number in range(3)]
    documents, skipped = read(tmp_path / "all.mbox", mailbox(*mails, letter("No id", Subject="s")))
    start = f"{tmp_path.name}/all.mbox/"
    assert not skipped
    assert [one.external_id.removeprefix(start) for one in documents] == ["0@x_y", "1@x_y", "2@x_y", "4"]
    assert [one.title for one in documents] == ["s0", "s1", "s2", "s"]


def test_the_ids_of_a_mailbox_stay_when_a_mail_is_removed_from_it(tmp_path: Path) -> None:
    mails = [letter(f"Letter {number}", Message_ID=f"<{number}@x>") for number in range(3)]
    before, _ = read(tmp_path / "a.mbox", mailbox(*mails))
    after, _ = read(tmp_path / "a.mbox", mailbox(*mails[1:]))
    assert [one.external_id for one in after] == [one.external_id for one in before[1:]]


def test_two_mails_of_one_message_id_are_both_kept(tmp_path: Path) -> None:
    documents, _ = read(
        tmp_path / "a.mbox", mailbox(letter("One", Message_ID="<1@x>"), letter("Two", Message_ID="<1@x>"))
    )
    assert len({one.external_id for one in documents}) == 2


def test_a_mailbox_with_attachments_and_windows_line_ends(tmp_path: Path) -> None:
    mail = letter("See it.", Subject="x", Message_ID="<1@x>")
    mail.add_attachment(b"Text", maintype="text", subtype="plain", filename="a.txt")
    documents, skipped = read(tmp_path / "a.mbox", mailbox(mail).replace(b"\n", b"\r\n"))
    assert not skipped
    assert [one.external_id.rpartition("a.mbox/")[2] for one in documents] == ["1@x", "1@x/a.txt"]


def test_a_mail_without_anything_is_named_and_the_next_read(tmp_path: Path) -> None:
    documents, skipped = read(tmp_path / "a.mbox", b"From x\n\n\n\nFrom x\nSubject: s\n\nText\n")
    assert [one.title for one in documents] == ["s"]
    assert [one.reason for one in skipped] == ["a mail without text"]
