"""Cleaning and leakage: every reason by an example, and what must be kept beside it."""

from __future__ import annotations

from typing import Any

import pytest
from made import pair, question, questions

from memspan.text.questions import Question, passage
from memspan.train.data import clean as reasons
from memspan.train.data.clean import Cleaner, CleanSettings, latin_share
from memspan.train.data.leakage import Held, find_leakage
from memspan.train.data.matching import AnswerFinder, text_hash

TEXT = passage("Otter", "The otter's name is Mabli Jones; it came in 1952, and weighs 5,200 grams.")


def cleaned(*given: Question, **settings: Any) -> tuple[list[str], dict[str, int]]:
    """The ids kept, and what was dropped."""
    cleaner = Cleaner(CleanSettings(**settings))
    kept = [found.id for found in cleaner.clean(given)]
    dropped: dict[str, int] = {}
    for report in cleaner.report.values():
        assert report.read == report.kept + sum(report.dropped.values())
        for reason, number in report.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + number
    return kept, dropped


def test_good_questions_are_kept_as_they_are() -> None:
    given = [*questions(30), pair(50), question(60, type="unanswerable", answers=(), positives=())]
    assert Cleaner().clean(given) == given


def test_no_positives() -> None:
    assert cleaned(question(1, positives=()), question(2)) == (["zoo-2"], {reasons.NO_POSITIVES: 1})


def test_the_same_question_in_other_letters_is_dropped_whatever_its_source() -> None:
    again = question(5, id="other", source="b", question="  where DOES ibis number 5 live")
    assert cleaned(question(5), again) == (["zoo-5"], {reasons.SAME_QUESTION: 1})
    assert cleaned(again, question(5))[0] == ["other"], "the first is kept"


def test_what_was_dropped_does_not_hide_what_comes_after() -> None:
    bad = question(5, id="bad", answers=("Atlantis",))
    assert cleaned(bad, question(5)) == (["zoo-5"], {reasons.NO_ANSWER: 1})


def test_a_second_pair_of_one_passage_is_dropped_but_not_a_second_question() -> None:
    same = question(1).positives
    assert cleaned(pair(1), pair(2, positives=same)) == (["zoo-1"], {reasons.SAME_PASSAGE: 1})
    assert len(cleaned(pair(1), pair(2, positives=same), one_pair_per_passage=False)[0]) == 2
    assert len(cleaned(question(1), question(2, positives=same, answers=question(1).answers))[0]) == 2


def test_too_long() -> None:
    long = question(1, question="word " * 11)
    assert cleaned(long, max_question=10) == ([], {reasons.TOO_LONG: 1})
    assert cleaned(long, max_question=11)[0] == ["zoo-1"]
    wide = question(1, positives=(passage("", "Rome " * 11),))
    assert cleaned(wide, max_passage=10) == ([], {reasons.TOO_LONG: 1})
    assert cleaned(wide, max_passage=11)[0] == ["zoo-1"]


def test_lengths_are_counted_by_the_given_tokenizer() -> None:
    cleaner = Cleaner(CleanSettings(max_question=10), count_tokens=len)
    assert cleaner.clean([question(1)]) == []
    assert cleaner.report["zoo"].dropped == {reasons.TOO_LONG: 1}


def test_other_languages_by_their_letters() -> None:
    greek = question(1, question="Πού ζει η βίδρα;", positives=(passage("", "Η βίδρα ζει στη Rome."),))
    assert cleaned(greek) == ([], {reasons.OTHER_LANGUAGE: 1})
    assert cleaned(greek, min_latin=0)[0] == ["zoo-1"]
    name = question(1, positives=(passage("", "The otter (Greek βίδρα), ÆØÅ, lives in Rome, not in the south."),))
    assert cleaned(name)[0] == ["zoo-1"]


@pytest.mark.parametrize(("text", "share"), [("abc", 1), ("", 1), ("123 !", 1), ("é", 1), ("aб", 0.5), ("東京", 0)])
def test_latin_share(text: str, share: float) -> None:
    assert latin_share(text) == share


def test_an_answer_that_no_positive_holds() -> None:
    lost = question(1, answers=("Atlantis",))
    assert cleaned(lost) == ([], {reasons.NO_ANSWER: 1})
    assert cleaned(lost, abstractive=("zoo",))[0] == ["zoo-1"]
    for free in ("yesno", "pair", "unanswerable"):
        assert cleaned(question(1, answers=("yes",), type=free))[0] == ["zoo-1"]
    second = question(2, type="multi", positives=(*question(1).positives, *question(2).positives))
    assert cleaned(second)[0] == ["zoo-2"]


@pytest.mark.parametrize(
    ("answer", "held"),
    [
        ("mabli jones", True),
        ("Mabli Jones'", True),
        ("1952", True),
        ("5", True),  # the number 5,200 is two words
        ("52", False),
        ("Jone", False),
        ("Otter", True),  # the title counts
        ("jones; it", True),
        ("Jones came", False),
        ("", False),
        ("+", False),
    ],
)
def test_answers_are_found_by_whole_words(answer: str, held: bool) -> None:
    assert AnswerFinder([answer]).holds(TEXT) is held
    assert AnswerFinder(["nothing", answer]).holds(TEXT) is held


def test_answers_without_words_are_found_by_their_characters() -> None:
    assert AnswerFinder(["東京"]).holds(passage("", "彼は東京に住む。"))
    assert AnswerFinder(["東"]).holds(passage("", "彼は東京に住む。"))
    assert not AnswerFinder(["大阪"]).holds(passage("", "彼は東京に住む。"))
    assert AnswerFinder(["+"]).holds(passage("", "a + b"))


def test_negatives_are_mended() -> None:
    gold, other = question(1).positives[0], passage("x", "Another text.")
    shouted = passage("A different title", gold.text.upper())
    cleaner = Cleaner()
    (found,) = cleaner.clean([question(1, negatives=(other, shouted, passage("y", "Another text")))])
    assert found.negatives == (other,)
    assert found.positives == (gold,)
    assert cleaner.report["zoo"].mended == {reasons.NEGATIVE_IS_POSITIVE: 1, reasons.REPEATED_PASSAGE: 1}


def test_positives_keep_their_hop_order() -> None:
    first, second, third = (question(number).positives[0] for number in (5, 1, 9))
    (found,) = Cleaner().clean([question(1, positives=(first, second, first, third), type="multi")])
    assert found.positives == (first, second, third)


def test_the_report_names_examples_by_source_and_reason() -> None:
    cleaner = Cleaner()
    cleaner.clean([*(question(n, positives=()) for n in range(5)), question(9), question(10, source="b", positives=())])
    report = cleaner.report["zoo"]
    assert (report.read, report.kept, report.dropped) == (6, 1, {reasons.NO_POSITIVES: 5})
    assert [example.id for example in report.examples[reasons.NO_POSITIVES]] == ["zoo-0", "zoo-1", "zoo-2"]
    assert cleaner.report["b"].dropped == {reasons.NO_POSITIVES: 1}


def test_evaluation_questions_are_dropped_by_text_and_by_id() -> None:
    held = Held([question(1, id="dev-1"), question(2, id="dev-0123456789abcdef")])
    cleaner = Cleaner(leaks=held.leaks)
    kept = cleaner.clean([question(1), question(7, id="train-0123456789abcdef"), question(8)])
    assert [found.id for found in kept] == ["zoo-8"]
    assert cleaner.report["zoo"].dropped == {reasons.LEAKED: 2}


def test_leakage_tells_questions_ids_and_passages_apart() -> None:
    shared = question(3).positives
    evaluation = [question(1, id="dev-1"), question(30, id="dev-30", positives=shared), question(40, id="zoo-4")]
    found = find_leakage([question(1, question="WHERE does heron number 1 live"), question(3), question(4)], evaluation)
    assert found.questions == (("zoo-1", "dev-1"),)
    assert found.ids == (("zoo-4", "zoo-4"),)
    assert found.passages == 2 and found.found  # of question 1 and of question 3
    only_passage = find_leakage([question(3)], evaluation)
    assert (only_passage.passages, only_passage.found) == (1, False)


def test_short_ids_of_two_sources_are_not_taken_for_the_same() -> None:
    assert not Held([question(1, id="dev-17")]).leaks(question(2, id="train-17"))


def test_hashes_look_past_case_and_punctuation_only() -> None:
    assert text_hash("Who is it?") == text_hash("who  is it") != text_hash("who is he")
    assert text_hash("?!") != text_hash("...")


@pytest.mark.parametrize("wrong", [{"min_latin": 1.5}, {"max_passage": 0}, {"max_question": 0}])
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CleanSettings(**wrong)
