"""What full-text search finds: words of any language, in other forms, with other marks, in parts; and identifiers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import commit_texts
from hypothesis import given, settings
from hypothesis import strategies as st

from memspan.bank import edits
from memspan.bank.catalog import DEFAULT_NAMESPACE, Catalog
from memspan.types import Document

# Texts that nothing below is to find by chance.
OTHERS = (
    "The otter of Rome lives at number seven.",
    "Zwischen den Zeilen steht ein anderer Satz.",
    "Il n'y a rien à voir par ici, et personne.",
    "В этой комнате совсем никого не было.",
    "関係のない文書です。",
)


@contextlib.contextmanager
def made(path: Path, *texts: str) -> Iterator[Catalog]:
    """A catalog of texts, called by their places."""
    with contextlib.closing(Catalog(path / "catalog.sqlite", create=True)) as catalog:
        catalog.execute("PRAGMA synchronous = OFF")
        commit_texts(catalog, *(Document(str(place), text) for place, text in enumerate(texts)))
        yield catalog


def found(catalog: Catalog, question: str) -> list[str]:
    """The names of what a question finds, best first."""
    ids = [document_id for document_id, _ in catalog.search(DEFAULT_NAMESPACE, question, 100)]
    return [stored.external_id for stored in catalog.documents(DEFAULT_NAMESPACE, ids)]


@pytest.mark.parametrize(
    ("text", "question"),
    [
        # Marks stay in words, and words with and without vowel marks are the same.
        ("यह हिन्दी की किताब है", "हिन्दी"),
        ("यह हिन्दी की किताबें हैं", "किताब"),
        ("ज़मीन का नक्शा", "जमीन"),
        ("বাংলা ভাষার বই", "বাংলা"),
        ("தமிழ் மொழி", "தமிழ்"),
        ("తెలుగు భాష", "తెలుగు"),
        ("ಕನ್ನಡ ಭಾಷೆ", "ಕನ್ನಡ"),
        ("മലയാളം ഭാഷ", "മലയാളം"),
        ("ਪੰਜਾਬੀ ਬੋਲੀ", "ਪੰਜਾਬੀ"),
        ("සිංහල භාෂාව", "සිංහල"),
        ("نهاية الكِتَابِ", "كتاب"),
        ("نهاية كتاب", "كِتَاب"),
        ("أحمد في البيت", "احمد"),
        ("قرأت الكتب كلها", "كتب"),
        ("کتاب فارسی", "كتاب"),
        ("می‌روم به خانه", "میروم"),
        ("שָׁלוֹם עליכם", "שלום"),
        ("שלום עליכם", "שָׁלוֹם"),
        ("תל־אביב בלילה", "אביב"),
        ("ქართული ენა", "ქართული"),
        ("አማርኛ ቋንቋ", "አማርኛ"),
        ("བོད་སྐད་ཡིག", "སྐད"),
        # Scripts without spaces.
        ("ฉันรักภาษาไทยมาก", "ภาษาไทย"),
        ("ฉันรักภาษาไทยมาก", "รัก"),
        ("ຂ້ອຍຮັກພາສາລາວ", "ພາສາລາວ"),
        ("ខ្ញុំស្រឡាញ់ភាសាខ្មែរ", "ភាសាខ្មែរ"),
        ("မြန်မာဘာသာစကား", "ဘာသာ"),
        ("我爱北京天安门", "北京"),
        ("我爱北京天安门", "京"),
        ("我爱北京天安门", "门"),
        ("猫", "猫"),
        ("黒い猫がいる", "猫"),
        ("𠮷野家の牛丼", "𠮷野家"),
        ("𠮷野家の牛丼", "𠮷"),
        ("人々の時々", "時々"),
        ("サーバーの設定", "ｻｰﾊﾞｰ"),
        ("ｺﾝﾋﾟｭｰﾀｰ入門", "コンピューター"),
        ("コンピューター入門", "コンピュータ"),
        ("ＡＢＣ株式会社", "abc"),
        ("책을 추천해 주세요", "책"),
        ("서울에서 만나요", "서울"),
        # Forms of words, by the language of the text.
        ("The universities were running studies.", "study of a university"),
        ("Die Häuser stehen in den Städten und nicht auf dem Land.", "Haus"),
        ("Das Haus steht in der Stadt und nicht auf dem Land.", "Häuser"),
        ("Les chevaux sont dans les prairies avec elle.", "prairie"),
        ("Las canciones de los niños son muy bonitas", "canción"),
        ("As canções são muito bonitas para nós", "canções"),
        ("I libri sono nella biblioteca della città", "biblioteche"),
        ("De katten zijn in het huis van mijn oma", "kat"),
        ("Husen är i staden och på landet", "huset"),
        ("Talossa on monta huonetta ja se on vanha", "huone"),
        ("A házak nagyon szépek és ez egy város", "ház"),
        ("В этом городе были большие дома", "дом"),
        ("Στην πόλη είναι πολλά σπίτια και το σπίτι", "σπιτια"),
        ("Bu evler çok güzel ve bir bahçe var", "ev"),
        ("Rumah-rumah itu adalah milik mereka dan dia", "rumah"),
        ("Những ngôi nhà của tôi ở Hà Nội", "nhà"),
        # One letter, written in two ways.
        ("die Straße in Basel", "STRASSE"),
        ("die Strasse in Basel", "Straße"),
        ("İstanbul'da yaşıyorum", "istanbul"),
        ("ISTANBUL", "İstanbul"),
        ("Ο ΟΔΥΣΣΕΥΣ γύρισε", "οδυσσευς"),
        ("Ο Οδυσσεύς γύρισε", "ΟΔΥΣΣΕΥΣ"),
        ("a résumé of the work", "resume"),
        ("a resume of the work", "résumé"),
        ("Zu\u0308rich am See", "Z\u00fcrich"),
        ("Zürich am See", "zurich"),
        ("Kraków i Łódź", "lodz"),
        ("Smørrebrød fra Ærø", "smorrebrod aero"),
        ("ёлка в лесу", "елка"),
        ("елка в лесу", "Ёлка"),
        ("п’ять років", "п'ять"),
        ("the ﬁnal oﬃce", "final office"),
        ("a soft\u00adhyphen in it", "softhyphen"),
        # Compounds, identifiers, numbers.
        ("written in C++ and fast", "C++"),
        ("written in C++17 and fast", "c++"),
        ("written in C# and fast", "c#"),
        ("written in F# and fast", "F#"),
        ("for .NET only", ".NET"),
        ("for .NET only", "net"),
        ("runs on node.js", "node.js"),
        ("runs on node.js", "nodejs"),
        ("runs on NodeJS", "node.js"),
        ("a merger of AT&T", "AT&T"),
        ("a merger of AT&T", "att"),
        ("call getUserById twice", "getUserById"),
        ("call getUserById twice", "getuserbyid"),
        ("call getUserById twice", "user"),
        ("call get_user_by_id twice", "getUserById"),
        ("call parseHTTPResponse twice", "http response"),
        ("use max_new_tokens here", "max_new_tokens"),
        ("use max_new_tokens here", "tokens"),
        ("use max-new-tokens here", "max_new_tokens"),
        ("see CVE-2024-1234 for it", "CVE-2024-1234"),
        ("see CVE-2024-1234 for it", "cve 2024 1234"),
        ("since v2.13.0 of it", "v2.13.0"),
        ("pi is 3.14", "3.14"),
        ("at 192.168.0.1 now", "192.168.0.1"),
        ("ask user@example.com first", "user@example.com"),
        ("ask user@example.com first", "example.com"),
        ("fixed in #1234", "#1234"),
        ("fixed in #1234", "1234"),
        ("send an e-mail", "email"),
        ("send an email", "e-mail"),
        ("send an e\u2011mail", "e-mail"),
        ("I don't know", "don’t know"),
        ("pendant l'été dernier", "été"),
        ("pendant l’été dernier", "l'ete"),
        ("by Flann O'Brien", "obrien"),
        ("by Flann O’Brien", "O'Brien"),
        ("by Flann O'Brien", "Brien"),
        ("the dog's bone", "dog"),
        ("Covid-19 tests", "covid19"),
        ("made in the U.S.A.", "USA"),
        ("رقم ١٢٣٤", "1234"),
        ("the party \U0001f389 was good", "\U0001f389"),
        ("https://example.org/docs/setup_guide.html", "setup guide"),
        (r"C:\Users\alice\notes.txt", "alice"),
    ],
)  # fmt: skip
def test_a_text_is_found(tmp_path: Path, text: str, question: str) -> None:
    with made(tmp_path, *OTHERS, text) as catalog:
        assert found(catalog, question)[:1] == [str(len(OTHERS))]


@pytest.mark.parametrize(
    ("exact", "other", "question"),
    [
        ("the résumé of Ann", "the resume of Ann", "résumé"),
        ("the resume of Ann", "the résumé of Ann", "resume"),
        ("das ist schön und gut", "das ist schon und gut", "schön"),
        ("das ist schon und gut", "das ist schön und gut", "schon"),
        ("mẹ của tôi là một", "me của tôi là một", "mẹ"),
        ("written in C++ now", "written in C now", "C++"),
        ("written in C# now", "written in C now", "C#"),
        ("version 2.13.0 came", "13 of version 2 had 0", "2.13.0"),
        ("host 10.0.0.21 is up", "host 21.0.0.10 is up", "10.0.0.21"),
        ("CVE-2024-1234 is open", "CVE-1234-2024 is open", "CVE-2024-1234"),
        ("the AT&T of old", "at the T of old", "AT&T"),
        ("runs of the engine", "running of the engine", "runs"),
        ("running of the engine", "runs of the engine", "running"),
        ("東京都に住む", "京都と東に住む", "東京都"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_what_is_written_as_the_question_is_comes_first_or_equal(
    tmp_path: Path, exact: str, other: str, question: str, first: bool
) -> None:
    texts = (*OTHERS, *((exact, other) if first else (other, exact)))
    with made(tmp_path, *texts) as catalog:
        scores = dict(catalog.search(DEFAULT_NAMESPACE, question, 100))
        by_name = {found.external_id: scores[found.id] for found in catalog.documents(DEFAULT_NAMESPACE, list(scores))}
        place = texts.index(exact)
        assert by_name[str(place)] == max(by_name.values())


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("der Hund und die Katze", "der und die Vögel"),
        ("le chien et le chat", "où est la voiture ?"),
        ("the cat and the dog", "what is the house"),
        ("кошка и собака в доме", "где и в чём лодка"),
        ("東京に行く", "京に東"),
    ],
)
def test_function_words_alone_do_not_find(tmp_path: Path, text: str, question: str) -> None:
    with made(tmp_path, text) as catalog:
        assert not set(found(catalog, question)) or "東" in text


def test_a_question_without_function_words_is_stemmed_as_the_texts_are(tmp_path: Path) -> None:
    german = [f"Der Wagen {number} ist in der Halle und nicht auf der Straße." for number in range(5)]
    with made(tmp_path, *german, "Die Katzen sind in dem Garten und auf der Wiese.") as catalog:
        assert found(catalog, "Katze") == ["5"]
        assert found(catalog, "Gärten") == ["5"]
        assert found(catalog, "garten wiesen")[0] == "5"


@pytest.mark.parametrize(
    "question",
    [
        *('"', '""', "'", '"otter', 'otter"', "otter OR", "OR", "AND otter", "NOT otter", "NEAR(otter rome, 2)"),
        *("NEAR", "words : otter", "forms:otter", "{words forms} : otter", "-otter", "^otter", "otter*", "+otter"),
        *("(otter", ")", "otter\0rome", "\0", "\ud800", "otter \udfff", "\ufffe", "otter;--", "%s %d {}", "\\"),
        *("') DROP TABLE words_1; --", "rank", "words_1", "MATCH", "language:en", '"language:en"', "the of and"),
        *("?!", "\u202eotter", "\n\r\t", "''''"),
        *("otter " * 20_000, "x" * 100_000, "猫" * 50_000, "a.b" * 40_000, "'" * 100_000, "\U0001f389" * 30_000),
        " ".join(f"word{number}" for number in range(12_000)),
        "\u0301" * 10_000,
    ],
    ids=lambda question: ascii(question[:24]),
)  # fmt: skip
def test_no_question_is_an_error(tmp_path: Path, question: str) -> None:
    with made(tmp_path, *OTHERS) as catalog:
        names = found(catalog, question)
        assert (names[:1] == ["0"]) or "otter" not in question
        assert set(names) <= set(map(str, range(len(OTHERS))))


@given(st.text(max_size=80), st.text(max_size=40))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_any_text_can_be_searched_changed_and_taken_out(
    tmp_path_factory: pytest.TempPathFactory, text: str, question: str
) -> None:
    text = text.encode("utf-8", "ignore").decode().replace("\0", "") or "x"
    with made(tmp_path_factory.mktemp("any"), *OTHERS, text) as catalog:
        found(catalog, question)
        edits.delete_sources(catalog, DEFAULT_NAMESPACE, [str(len(OTHERS))])
        index = catalog.word_index(DEFAULT_NAMESPACE)
        assert index is not None and not index.differs(catalog.texts(DEFAULT_NAMESPACE))
