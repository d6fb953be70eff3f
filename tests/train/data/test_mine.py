"""Hard negatives: near in words, and not an answer."""

from __future__ import annotations

import pytest
from made import question

from memspan.errors import DataError
from memspan.text.questions import Question, passage
from memspan.train.data.mine import Miner, MineSettings, passages_of

GOLD = passage("Otter", "The otter of the northern river sleeps by day and hunts eels at night in Rome.")
NEAR = passage("Otter", "An otter of the southern river eats crabs, frogs and sometimes small birds.")
FAR = passage("Heron", "A heron stands still.")
ANSWERING = passage("Zoo", "Every otter of the river was brought to Rome in spring by four keepers.")
COPY = passage("Copy", "The otter of the northern river sleeps by day and hunts eels at night, in Rome!")
REWORDED = passage("", "The otter of the northern river sleeps by day and hunts eels at night in winter.")
CORPUS = [FAR, NEAR, GOLD, ANSWERING, COPY, REWORDED]


def asked(**changes: object) -> Question:
    values = {"question": "Where does the otter of the river sleep?", "answers": ("Rome",), "positives": (GOLD,)}
    return question(0, **(values | changes))


def mined(given: Question, **settings: object) -> list[str]:
    (found,) = Miner(CORPUS, MineSettings(**settings)).mine([given]).questions  # type: ignore[arg-type]
    assert (found.id, found.positives, found.answers) == (given.id, given.positives, given.answers)
    return [document.text for document in found.negatives]


def test_what_answers_repeats_or_is_a_positive_is_passed_over() -> None:
    assert mined(asked(), count=5) == [NEAR.text]
    result = Miner(CORPUS, MineSettings(count=5)).mine([asked()])
    assert (result.added, result.answering, result.overlapping) == (1, 1, 1)


def test_every_guard_is_needed() -> None:
    assert ANSWERING.text in mined(asked(answers=("eels",)), count=5)
    assert REWORDED.text in mined(asked(), count=5, max_overlap=1.0)
    assert COPY.text not in mined(asked(), count=5, max_overlap=1.0), "the same text by its hash, title apart"


def test_pairs_have_no_answer_to_look_for() -> None:
    assert ANSWERING.text in mined(asked(type="pair", answers=()), count=5)


def test_own_negatives_stay_first_and_count() -> None:
    assert mined(asked(negatives=(FAR,)), count=1) == [FAR.text]
    assert mined(asked(negatives=(FAR,)), count=2) == [FAR.text, NEAR.text]
    assert mined(asked(negatives=(NEAR,)), count=2) == [NEAR.text], "what it has is not added again"
    assert mined(asked(), count=0) == []


def test_the_best_by_bm25_come_first_and_depth_limits_them() -> None:
    corpus = [passage("", f"river {'otter ' * times}{'filler ' * (9 - times)}") for times in range(1, 9)]
    (found,) = Miner(corpus, MineSettings(count=3)).mine([asked()]).questions
    assert [document.text.count("otter") for document in found.negatives] == [8, 7, 6]
    (found,) = Miner(corpus, MineSettings(count=3, depth=2)).mine([asked()]).questions
    assert len(found.negatives) == 2


def test_progress_is_told() -> None:
    heard: list[int] = []
    Miner(CORPUS).mine([asked(), asked()], progress=heard.append)
    assert heard == [1, 2]


def test_passages_of_questions_come_once_positives_first() -> None:
    assert passages_of([asked(negatives=(FAR,)), asked(positives=(NEAR,), negatives=(GOLD,))]) == [GOLD, NEAR, FAR]


def test_bad_settings_and_no_corpus() -> None:
    with pytest.raises(DataError, match="no passages"):
        Miner([])
    for wrong in ({"count": -1}, {"depth": 0}, {"max_overlap": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            MineSettings(**wrong)  # type: ignore[arg-type]
