"""Needle tests: what is hidden, where, how long it gets, and that scoring tells a reader from a guesser."""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import islice

import pytest
from helpers import tiny_tokenizer

from memspan.config import TEMPLATES
from memspan.errors import EvaluationError
from memspan.eval import metrics
from memspan.eval.niah import NIAH_TASKS, NOISE, TASKS, Essays, Haystack, make_haystack
from memspan.text.template import PromptTemplate

BOOK = "".join(f"Dr. Ames walked {number} miles. It  rained\nall day {number}! " for number in range(400))
FOUND = re.compile(r"One of the special magic (number|uuid)s for (\S+) is: (\S+)\.")
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
WORDS = re.compile(r"[a-z]+-[a-z]+")


def count_words(text: str) -> int:
    return len(text.split())


def sample(task: str, num_tokens: int = 4000, index: int = 0, **changes: object) -> Haystack:
    options = {"count_tokens": count_words, "essays": Essays([BOOK], count_words), **changes}
    return make_haystack(task, num_tokens, index=index, **options)  # type: ignore[arg-type]


def text_of(made: Haystack) -> str:
    return "\n".join(found.document.text for found in made.documents())


@pytest.mark.parametrize(
    ("task", "key", "value", "keys", "values", "queries"),
    [
        ("niah_single_1", WORDS, r"\d{7}", 1, 1, 1),
        ("niah_single_2", WORDS, r"\d{7}", 1, 1, 1),
        ("niah_single_3", WORDS, UUID, 1, 1, 1),
        ("niah_multikey_1", WORDS, r"\d{7}", 4, 1, 1),
        ("niah_multikey_2", WORDS, r"\d{7}", None, 1, 1),
        ("niah_multikey_3", UUID, UUID, None, 1, 1),
        ("niah_multivalue", WORDS, r"\d{7}", 1, 4, 1),
        ("niah_multiquery", WORDS, r"\d{7}", 4, 1, 4),
    ],
)
def test_each_task_hides_what_the_paper_says(
    task: str, key: str, value: str, keys: int | None, values: int, queries: int
) -> None:
    made = sample(task)
    needles = FOUND.findall(text_of(made))
    assert all(re.fullmatch(key, name) and re.fullmatch(value, hidden) for _, name, hidden in needles)
    assert len(made.answers) == values * queries
    asked = [name for _, name, _ in needles if name in made.question]
    assert len(set(asked)) == queries
    assert sorted(hidden for _, name, hidden in needles if name in asked) == sorted(made.answers)
    if keys is None:
        assert len(needles) > 300, "the hay is needles"
    else:
        assert len({name for _, name, _ in needles}) == keys and len(needles) == keys * values
        assert (NOISE in text_of(made)) is (task == "niah_single_1")
    many = values * queries > 1
    assert made.question.startswith("What are all the special magic" if many else "What is the special magic")
    assert made.question.endswith("mentioned in the provided text?")


def test_the_sentences_of_the_book_stand_whole_between_the_needles() -> None:
    hay = FOUND.sub("", text_of(sample("niah_single_2", 3000)))
    expected = re.sub(r"\s+", " ", BOOK).strip()
    hay = re.sub(r"\s+", " ", hay).strip()
    assert expected.startswith(hay) and len(hay) > 10_000


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("num_tokens", [400, 4096, 50_000])
def test_the_length_is_what_was_asked_for_to_one_sentence(task: str, num_tokens: int) -> None:
    made = sample(task, num_tokens)
    found = list(made.documents())
    assert all(item.tokens == count_words(item.document.text) <= 256 for item in found)
    total = sum(item.tokens for item in found)
    assert num_tokens - 20 <= total <= num_tokens
    assert len({item.document.external_id for item in found}) == len(found)
    gold = "\n".join(item.document.text for item in found if item.wanted)
    assert metrics.string_match(gold, made.answers) == 1
    rest = "\n".join(item.document.text for item in found if not item.wanted)
    assert metrics.string_match(rest, made.answers) == 0


def test_tokens_are_counted_by_the_tokenizer_that_is_given() -> None:
    count = PromptTemplate(TEMPLATES["chatml"], tiny_tokenizer()).count_tokens
    made = sample("niah_single_2", 4096, count_tokens=count, essays=Essays([BOOK], count))
    exact = sum(count(item.document.text) for item in made.documents())
    assert 0.98 * 4096 < exact <= 4096


def test_a_short_book_is_begun_anew() -> None:
    essays = Essays(["One two. Three!"], count_words)
    assert [text for text, _ in islice(essays, 5)] == ["One two.", "Three!", "One two.", "Three!", "One two."]
    assert [text for text, _ in islice(essays, 3)] == ["One two.", "Three!", "One two."]
    with pytest.raises(EvaluationError, match="text is empty"):
        list(islice(Essays([" "], count_words), 1))


def test_the_same_seed_is_the_same_haystack_and_another_is_not() -> None:
    for task in TASKS:
        first = sample(task)
        assert text_of(first) == text_of(first) == text_of(sample(task))
        assert first.answers != sample(task, index=1).answers
        assert first.answers != sample(task, seed=1).answers


@pytest.mark.parametrize("task", ["niah_single_1", "niah_single_2", "niah_multikey_2"])
def test_needles_are_hidden_at_every_depth(task: str) -> None:
    tenths: Counter[int] = Counter()
    for index in range(150):
        made = sample(task, 500, index)
        text = text_of(made)
        tenths[min(9, 10 * text.index(f"{made.answers[0]}.") // len(text))] += 1
    assert set(tenths) == set(range(10)) and max(tenths.values()) < 40


def test_variable_tracking_is_a_chain_in_order() -> None:
    made = sample("vt", 2000)
    steps = re.findall(r"VAR (\w{5}) = (?:VAR )?(\w{5})", text_of(made))
    value = re.search(r"the value (\d{5}) in the text", made.question)
    assert value and steps[0][1] == value[1]
    assert [name for name, _ in steps] == list(made.answers) and len(steps) == 5
    assert [source for _, source in steps[1:]] == list(made.answers[:-1])


def test_a_reader_scores_everything_and_a_guesser_chance() -> None:
    """Over many haystacks: who reads the needle asked for, who names a random needle's value, who makes one up."""
    chance = {"niah_multikey_1": 0.25, "niah_multivalue": 0.25, "niah_multiquery": 0.25}

    def read(needles: list[tuple[str, str, str]], made: Haystack) -> str:
        return " ".join(value for _, key, value in needles if key in made.question)

    generator = random.Random(0)
    for task in NIAH_TASKS:
        samples = [sample(task, 300, index) for index in range(80)]
        texts = [(FOUND.findall(text_of(made)), made) for made in samples]
        assert all(metrics.string_match(read(*found), found[1].answers) == 1 for found in texts)
        made_up = [metrics.string_match(str(generator.randint(10**6, 10**7)), made.answers) for made in samples]
        assert sum(made_up) == 0
        if task in chance:
            picked = [metrics.string_match(generator.choice(found)[2], made.answers) for found, made in texts]
            guessed = metrics.bootstrap(picked)
            assert guessed.low - 0.05 <= chance[task] <= guessed.high + 0.05


def test_questions_name_their_documents_and_a_memory_of_their_own() -> None:
    made = sample("niah_multiquery", 2000)
    question, tokens = made.as_question()
    assert tokens == sum(item.tokens for item in made.documents())
    assert question.needs_all and question.namespace == made.id and question.answers == made.answers
    assert metrics.string_match(" ".join(d.text for d in question.positives), made.answers) == 1


def test_what_cannot_be_made_is_named() -> None:
    with pytest.raises(EvaluationError, match="--haystack FILE"):
        sample("niah_single_2", essays=None)
    with pytest.raises(EvaluationError, match="make it longer"):
        sample("vt", 10)
    with pytest.raises(EvaluationError, match="the tasks are niah_single_1"):
        sample("niah")
