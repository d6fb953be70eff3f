from __future__ import annotations

import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from memspan.text.languages import FUNCTION_WORDS, LANGUAGES, stem
from memspan.text.terms import _spaced, content_words, index_terms, is_unspaced, plain_words, query_terms, rules

ENGLISH = FUNCTION_WORDS["en"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello, World!", ["hello", "world"]),
        ("the the The", ["the", "the", "the"]),
        ("the dog's and the dog’s", ["the", "dog", "and", "the", "dog"]),
        ("don't DON’T o'clock rock'n'roll", ["dont", "dont", "oclock", "rocknroll"]),
        ("the dogs' 'quoted' words", ["the", "dogs", "quoted", "words"]),
        ("snake_case __init__ x_1", ["snake", "case", "init", "x", "1"]),
        ("3.14 1,000 v2 2nd", ["3", "14", "1", "000", "v2", "2nd"]),
        ("a-b c/d e@f.org #tag C++", ["a", "b", "c", "d", "e", "f", "org", "tag", "c"]),
        ("naïve Ærøskøbing ΣΊΣΥΦΟΣ", ["naïve", "ærøskøbing", "σίσυφοσ"]),
        ("Straße İstanbul ﬁne ＡＢＣ x²", ["strasse", "istanbul", "fine", "abc", "x2"]),
        ("l'été dell'arte d’Artagnan qu'elle", ["été", "arte", "artagnan", "elle"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("বাংলা தமிழ் తెలుగు ಕನ್ನಡ മലയാളം ગુજરાતી", ["বাংলা", "தமிழ்", "తెలుగు", "ಕನ್ನಡ", "മലയാളം", "ગુજરાતી"]),
        ("כְּתָב כתב مُحَمَّد محمد محـــمد", ["כתב", "כתב", "محمد", "محمد", "محمد"]),
        ("١٢٣ ۴۵ १२", ["123", "45", "12"]),
        ("soft\u00adhyphen zero\u200cwidth \ufeffmark \u202aleft\u202c", ["softhyphen", "zerowidth", "mark", "left"]),
        ("бой ёлка п'ять п’ять пʼять", ["бой", "ёлка", "пять", "пять", "пять"]),
        ("\U0001f600 go\U0001f389", ["\U0001f600", "go", "\U0001f389"]),
        ("\U0001f469\u200d\U0001f4bb \U0001f44d\U0001f3fd", ["\U0001f469", "\U0001f4bb", "\U0001f44d"]),
        ("1\ufe0f\u20e3 \u2764\ufe0f", ["1", "\u2764"]),
        ("", []),
        (" \t\n", []),
        ("?!… — '' ... --- ___ +++ ### @@", []),
        ("\0 a\0b \ud800 \ue000 \U0010ffff", ["a", "b"]),
        ("a\r\nb\rc\u2028d\u00a0e", ["a", "b", "c", "d", "e"]),
    ],
)  # fmt: skip
def test_plain_words_are_lower_case_runs_of_letters_marks_and_digits(text: str, words: list[str]) -> None:
    assert plain_words(text) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("猫", ["猫"]),
        ("黒猫", ["黒猫"]),
        ("东京塔高", ["东京", "京塔", "塔高"]),
        ("東京、大阪", ["東京", "大阪"]),
        ("タワーの高さ", ["タワ", "ワー", "ーの", "の高", "高さ"]),
        ("ﾀﾜｰ", ["タワ", "ワー"]),
        ("ﾊﾞｰ", ["バー"]),
        ("ア・イ", ["ア", "イ"]),
        ("時々", ["時々"]),
        ("𠮷野家", ["𠮷野", "野家"]),
        ("\U00031350\U0002ebf0", ["\U00031350\U0002ebf0"]),
        ("서울의", ["서울", "울의"]),
        ("ㄅㄆㄇ", ["ㄅㄆ", "ㄆㄇ"]),
        ("第42回", ["第", "42", "回"]),
        ("GPUを使う", ["gpu", "を使", "使う"]),
        ("一二one三四", ["一二", "one", "三四"]),
        ("東京's", ["東京", "s"]),
        ("ที่นี่", ["ที่นี่"]),
        ("ภาษา", ["ภา", "าษ", "ษา"]),
        ("ພາສາ", ["ພາ", "າສ", "ສາ"]),
        ("ខ្មែរ", ["ខ្មែរ"]),
        ("မြန်မာ", ["မြန်", "န်မာ"]),
        ("แมว123 cat", ["แม", "มว", "123", "cat"]),
        ("ก\u200bข", ["ก", "ข"]),
    ],
)
def test_scripts_without_spaces_are_overlapping_pairs(text: str, words: list[str]) -> None:
    assert plain_words(text) == words
    assert set(words) <= set(index_terms(text).words)


@pytest.mark.parametrize("text", ["猫", "タワー", "서울", "ภาษา", "ພາສາ", "ខ្មែរ", "မြန်မာ", "a 𠮷", "々"])
def test_scripts_without_spaces_are_known(text: str) -> None:
    assert is_unspaced(text)
    assert not is_unspaced("Ünïcode हिन्दी עברית 123 \U0001f600")


@pytest.mark.parametrize(
    ("text", "words", "forms"),
    [
        ("C++", ["c", "c++"], []),
        ("C++17", ["c", "c++", "17"], []),
        ("C# F#", ["c", "c#", "f", "f#"], []),
        ("a+b", ["a", "b"], []),
        (".NET", ["net", ".net"], []),
        ("node.js", ["node", "js", "nodej"], ["nodejs"]),
        ("AT&T", ["at", "t", "att"], ["language:en"]),
        ("R&D", ["r", "d", "rd"], []),
        ("e-mail", ["e", "mail", "email"], []),
        ("e\u2010mail", ["e", "mail", "email"], []),
        ("snake_case", ["snake", "case", "snakecas"], ["snakecase"]),
        ("getUserById", ["getuserbyid", "get", "user", "by", "id"], []),
        ("HTTPServer", ["httpserver", "http", "server"], []),
        ("CVE-2024-1234", ["cve", "2024", "1234", "cve2024-1234"], []),
        ("v2.13.0", ["v2", "13", "0", "v2.13.0"], []),
        ("3.14", ["3", "14", "3.14"], []),
        ("192.168.0.1", ["192", "168", "0", "1", "192.168.0.1"], []),
        ("ab@cd.gov", ["ab", "cd", "gov", "abcdgov"], []),
        ("#1234", ["1234", "#1234"], []),
        ("@bob", ["bob", "@bob"], []),
        ("O'Brien", ["obrien", "brien"], []),
        ("don't", ["dont", "don"], []),
        ("U.S.A.", ["u", "s", "a", "usa"], []),
        ("running runs", ["run", "run"], ["running", "runs"]),
        ("résumé", ["resum"], ["résumé"]),
        ("naïve trouvée", ["naiv", "trouve"], ["naïve", "trouvée"]),
        ("la nationalité est", ["la", "nationalit", "national", "est"], ["language:fr", "nationalité"]),
        ("Łódź", ["lodz"], ["łódź"]),
        ("東京", ["東京", "東", "京"], []),
        ("猫", ["猫"], []),
    ],
)
def test_compounds_are_indexed_whole_and_in_parts_words_by_their_stems(
    text: str, words: list[str], forms: list[str]
) -> None:
    terms = index_terms(text)
    assert (terms.words, terms.forms) == (words, forms)


def test_a_chain_is_no_compound_beyond_a_length() -> None:
    long = "ab.cd-" * 20_000
    assert set(index_terms(long).words) == {"ab", "cd"}
    assert index_terms("x" * 100_000).words == ["x" * 100_000]


def test_a_question_is_the_distinct_words_that_are_no_function_words() -> None:
    assert content_words("What is the zebra's Zebra and THE giraffe?") == ["zebra", "giraffe"]
    assert query_terms("What is the zebra's Zebra and THE giraffe?", ["en"]) == ["zebra", "giraff", "giraffe"]
    assert query_terms("东京的东京") == ["东京", "京的", "的东"]
    assert query_terms("猫") == ["猫"]


@pytest.mark.parametrize("question", ["To be, or not to be?", "The Who", "IT", "what's this"])
def test_a_question_of_function_words_keeps_them(question: str) -> None:
    words = content_words(question)
    assert words
    assert set(words) == set(plain_words(question)) <= ENGLISH
    assert set(words) <= set(query_terms(question))


@pytest.mark.parametrize(
    ("question", "language", "left"),
    [
        ("Wo ist der Turm?", "de", ["turm"]),
        ("Où est la tour ?", "fr", ["tour"]),
        ("¿Dónde está el castillo?", "es", ["castillo"]),
        ("Quando foi construído o castelo?", "pt", ["construído", "castelo"]),
        ("Dove si trova il castello?", "it", ["trova", "castello"]),
        ("Waar is het kasteel?", "nl", ["kasteel"]),
        ("Var är slottet och vem äger det?", "sv", ["slottet", "äger"]),
        ("Missä se on ja kuka asuu siinä linnassa?", "fi", ["asuu", "siinä", "linnassa"]),
        ("Gdzie jest zamek?", "pl", ["zamek"]),
        ("Kde je ten hrad?", "cs", ["hrad"]),
        ("Kale nerede ve ne zaman yapıldı?", "tr", ["kale", "yapıldı"]),
        ("Где находится этот замок и кто в нём?", "ru", ["находится", "замок", "нём"]),
        ("Де є цей замок і хто в ньому?", "uk", ["замок", "ньому"]),
        ("Πού είναι το κάστρο;", "el", ["κάστρο"]),
        ("أين هذه القلعة", "ar", ["القلعة"]),
        ("این قلعه در کجا است", "fa", ["قلعه"]),
        ("यह किला कहाँ है", "hi", ["किला"]),
        ("איפה הוא המבצר", "he", ["המבצר"]),
        ("Lâu đài ở đâu và của ai?", "vi", ["lâu", "đài"]),
    ],
)
def test_function_words_are_those_of_the_questions_language(question: str, language: str, left: list[str]) -> None:
    assert content_words(question) == left
    assert set(plain_words(question)) - set(left) <= FUNCTION_WORDS[language]


@pytest.mark.parametrize("question", ["war films", "die casting", "will power of attorney", "des moines", "C, D and E"])
def test_one_word_of_another_language_does_not_decide(question: str) -> None:
    assert content_words(question) == [word for word in plain_words(question) if word not in ENGLISH]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("the cats of the house", "en"),
        ("die Katzen in dem Haus und der Hund", "de"),
        ("les chats sont dans la maison", "fr"),
        ("кошки были в этом доме", "ru"),
        ("котки са в къщата и кучето е тук", "bg"),
        ("बिल्लियाँ घर में हैं", "hi"),
        ("मांजर घरात आहे आणि कुत्रा", "mr"),
        ("القطط في هذا البيت", "ar"),
        ("这是猫", None),
        ("Katze", None),
    ],
)
def test_a_text_is_marked_with_its_language(text: str, language: str | None) -> None:
    marks = [form for form in index_terms(text).forms if form.startswith("language:")]
    assert marks == ([] if language is None else [f"language:{language}"])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("the houses", "the house"),
        ("die Häuser sind in der Stadt", "das Haus ist in der Stadt"),
        ("les maisons sont dans la ville", "la maison est dans la ville"),
        ("las casas están en las ciudades", "la casa está en las ciudades"),
        ("le case sono nella città", "la casa è nella città"),
        ("husen är i staden och på landet", "huset är i staden och på landet"),
        ("эти дома были в городе", "этот дом был в городе"),
    ],
)
def test_forms_of_a_word_have_one_stem(one: str, other: str) -> None:
    stems = [{term for term in index_terms(text).words if term not in ENGLISH} for text in (one, other)]
    assert any(len(term) > 2 for term in stems[0] & stems[1])
    assert index_terms(one).words[1] == index_terms(other).words[1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Z\u00fcrich", "Zu\u0308rich"),
        ("\uac00\uc744", "\u1100\u1161\u110b\u1173\u11af"),
        ("Straße", "STRASSE"),
        ("Straße", "Strasse"),
        ("İstanbul", "ISTANBUL"),
        ("ΟΔΥΣΣΕΎΣ", "οδυσσεύς"),
        ("\u0958", "\u0915\u093c"),
        ("ｻｰﾊﾞｰ", "サーバー"),
        ("שָׁלוֹם", "שלום"),
        ("كِتَابٌ", "كتاب"),
        ("O’Brien", "O'Brien"),
        ("e‑mail", "e-mail"),
    ],
)
def test_two_ways_to_write_a_word_are_the_same_word(one: str, other: str) -> None:
    assert plain_words(one) == plain_words(other)
    assert index_terms(one).words == index_terms(other).words


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_function_words_and_stems(language: str) -> None:
    assert len(FUNCTION_WORDS[language]) > 30
    for word in FUNCTION_WORDS[language]:
        assert plain_words(word) == [word], "function words are words as they are indexed"
        assert stem(word, language)


def test_more_than_twenty_languages_are_stemmed() -> None:
    stemmed = [code for code in LANGUAGES if any(stem(word, code) != word for word in FUNCTION_WORDS[code])]
    assert len(stemmed) > 20


# Each is in every text below; its terms must be found by the question that is the text itself.
PIECES = [
    "The",
    "dog's",
    "东京塔",
    "don’t",
    "_x_",
    "Ümläut",
    "3.14",
    "猫",
    "\U0001f600",
    "IT'S",
    "C++",
    "l'été",
    "ภาษา",
]


def test_questions_are_cut_as_texts_are() -> None:
    # Every term of a question is one a text of the same words is indexed by: else it could never be found.
    for words in itertools.permutations(PIECES, 2):
        for joined in (" ".join(words), "".join(words), "-".join(words)):
            _check(joined)


@given(st.text(max_size=60))
@example(".OF")
@example("a.the")
@settings(max_examples=400, deadline=None, derandomize=True)
def test_any_text_is_found_by_itself(text: str) -> None:
    _check(text)


def _check(text: str) -> None:
    terms, indexed = query_terms(text), index_terms(text)
    assert len(terms) == len(set(terms))
    # A question may also be in other languages than the text was taken for: as it is written it is there.
    assert set(content_words(text)) <= {*indexed.words, *indexed.forms}
    assert not terms or set(terms) & {*indexed.words, *indexed.forms}
    assert bool(terms) == bool(indexed.words)
    for term in (*terms, *indexed.words, *indexed.forms):
        # The catalog joins terms by spaces and puts them in quotes.
        assert term and '"' not in term and "'" not in term and not any(map(str.isspace, term)) and "\0" not in term


def test_every_character_can_be_quoted() -> None:
    for first, end in ((0, 0x3100), (0xA000, 0xAC00), (0xFB00, 0x10000), (0x10000, 0x11000), (0x1D400, 0x20100)):
        for start in range(first, end, 0x100):
            _check("".join(map(chr, range(start, start + 0x100))))


def test_terms_are_the_same_in_every_process() -> None:
    text = "Die Katzen, l'été, C++ and getUserById в доме 東京 ภาษา résumé"
    program = f"from memspan.text.terms import *; print(ascii((index_terms({text!r}), query_terms({text!r}), rules())))"
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == ascii((index_terms(text), query_terms(text), rules()))


def test_terms_are_the_same_in_many_threads() -> None:
    texts = [f"Die Katzen{n} laufen, les chats{n} courent, cats{n} running в доме{n} 東京{n}" for n in range(200)]
    _spaced.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(index_terms, texts * 8))
    _spaced.cache_clear()
    assert found == [index_terms(text) for text in texts] * 8
