"""Rerankers: the backbone's likelihood against a loop of single forwards, the order they make, clear refusals."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest
import torch
from helpers import tiny_loaded

from memspan.errors import EvaluationError
from memspan.eval import rerank
from memspan.eval.arms import parse_arm
from memspan.eval.ranking import Ranker, Ranking
from memspan.eval.rerank import BackboneReranker, CrossEncoderReranker, reranked
from memspan.text.questions import Question
from memspan.types import Evidence, Span

QUESTION = "Where is the heron?"


def evidence(number: int, text: str) -> Evidence:
    return Evidence(number, str(number), "", text, Span(0, len(text)), 0.0, None, {}, "")


class Longest:
    """Prefers long texts."""

    def score(self, question: str, texts: Sequence[str]) -> list[float]:
        return [float(len(text)) for text in texts]


def test_the_likelihood_is_that_of_the_question_after_the_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_loaded()
    texts = ["the otter of Rome", "a heron", "the lynx of Quito lives in the hills and sleeps all day"]
    found = BackboneReranker(loaded).score(QUESTION, texts)
    template = loaded.template
    asked = template.tokens("{x}", x=rerank._ASKED + QUESTION)
    num_scored = len(asked) - len(template.tokens("{x}", x=rerank._ASKED))
    for text, score in zip(texts, found, strict=True):
        ids = [*template.tokens("{x}", x=text), *asked]
        with torch.inference_mode():
            log_TV = loaded.model.backbone(torch.tensor([ids])).logits[0].log_softmax(-1)
        wanted = [float(log_TV[place - 1, ids[place]]) for place in range(len(ids) - num_scored, len(ids))]
        assert score == pytest.approx(sum(wanted) / num_scored, abs=1e-4)
    monkeypatch.setattr(rerank, "BATCH_TOKENS", 1)
    assert BackboneReranker(loaded).score(QUESTION, texts) == pytest.approx(found, abs=1e-4), "batches change nothing"
    monkeypatch.setattr(rerank, "_PASSAGE_TOKENS", 3)
    long, longer = BackboneReranker(loaded).score(QUESTION, ["heron " * 9, "heron " * 90])
    assert long == pytest.approx(longer, abs=1e-5), "the end of a long text is not read"


def test_the_best_comes_first_and_equals_keep_their_order() -> None:
    documents = [evidence(1, "bb"), evidence(2, "a"), evidence(3, "cc"), evidence(4, "ddd")]
    found = reranked(Longest(), QUESTION, documents)
    assert [(item.document_id, item.score) for item in found] == [(4, 3), (1, 2), (3, 2), (2, 1)]
    assert reranked(Longest(), QUESTION, []) == []


def test_only_the_first_documents_are_ranked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    arms = [parse_arm("bm25@1"), parse_arm("bm25@1+rerank"), parse_arm("bm25@1+cross")]
    ranker = Ranker(arms, {"rerank": Longest()}, depth=2)
    first = Ranking((evidence(1, "a"), evidence(2, "bb"), evidence(3, "ccc")), 1.0)
    monkeypatch.setattr(ranker, "_first", lambda memory, arm, questions: [first] * len(questions))
    question = Question("q", QUESTION, ("Oslo",), ())
    plain, anew = (ranker.rank(None, arm, [question])[0] for arm in arms[:2])  # type: ignore[arg-type]
    assert [item.document_id for item in plain.documents] == [1, 2, 3]
    assert [item.document_id for item in anew.documents] == [2, 1] and anew.seconds > 1
    with pytest.raises(EvaluationError, match="--cross-encoder"):
        ranker.rank(None, arms[2], [question])  # type: ignore[arg-type]


def test_a_cross_encoder_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(EvaluationError, match="pip install"):
        CrossEncoderReranker("x")
