"""Arms and their names."""

from __future__ import annotations

import pytest

from memspan.errors import EvaluationError
from memspan.eval.arms import Arm, parse_arm


@pytest.mark.parametrize(
    ("text", "arm"),
    [
        ("none", Arm("none", "none", None, False)),
        ("oracle", Arm("oracle", "oracle", None, False)),
        ("bm25", Arm("bm25@5", "bm25", 5, False)),
        ("bm25@10", Arm("bm25@10", "bm25", 10, False)),
        ("router@1", Arm("router@1", "router", 1, True)),
        ("router@0", Arm("router@0", "router", 0, True)),
        ("hybrid@5-latents", Arm("hybrid@5-latents", "hybrid", 5, False)),
        ("oracle+latents", Arm("oracle+latents", "oracle", None, True, reroute=True)),
        ("generate", Arm("generate@5", "generate", 5, True, rounds=4, reroute=True)),
        ("generate@3+rounds2", Arm("generate@3+rounds2", "generate", 3, True, rounds=2, reroute=True)),
        ("hybrid+rounds", Arm("hybrid@5+rounds", "hybrid", 5, True, rounds=2)),
        ("router-latents+rounds3", Arm("router@5+rounds3-latents", "router", 5, False, rounds=3)),
        ("bm25@1+rerank", Arm("bm25@1+rerank", "bm25", 1, False, rerank="likelihood")),
        ("dense@10+cross", Arm("dense@10+cross", "dense", 10, False, rerank="cross")),
        ("dense+rounds", Arm("dense@5+rounds", "dense", 5, False, rounds=2)),
        ("hybrid@0+reroute", Arm("hybrid@0+reroute", "hybrid", 0, True, reroute=True)),
        ("hybrid+adaptive", Arm("hybrid@5+adaptive", "hybrid", 5, True, adaptive=True)),
    ],
)
def test_an_arm_is_its_name(text: str, arm: Arm) -> None:
    assert parse_arm(text) == arm


@pytest.mark.parametrize(
    "text",
    """|bm25@|rag|none@5|oracle@1|bm25@0|router@0-latents|bm25@-1|bm25+rank|bm25-rerank|bm25+rerank2|none+rounds
    oracle+adaptive|generate-latents|bm25+rerank+cross|bm25+rounds+rerank|hybrid+rounds+adaptive
    bm25+rerank+adaptive|router@0+adaptive|bm25+rounds0|router+latents-latents
    router-latents+reroute|none+reroute""".replace("\n", "|").split("|"),
)
def test_a_name_that_is_no_arm_is_refused(text: str) -> None:
    with pytest.raises(EvaluationError):
        parse_arm(text)


def test_a_refusal_names_the_remedy() -> None:
    for text, remedy in {
        "rag": "write one of none",
        "none@5": "leave out @5",
        "bm25@0": r"give it documents or \+latents",
        "generate-latents": "leave out -latents",
        "bm25+rerank+rerank": "name it once",
    }.items():
        with pytest.raises(EvaluationError, match=remedy):
            parse_arm(text)


@pytest.mark.parametrize(
    ("written", "name", "texts", "latents"),
    [
        ("hybrid@16+texts1", "hybrid@16+texts1", 1, False),
        ("bm25@5+texts", "bm25@5+texts", 0, False),
        ("oracle+texts0", "oracle+texts0", 0, False),
        ("router@3+adaptive+texts2", "router@3+adaptive+texts2", 2, False),
        ("hybrid@3", "hybrid@3", None, True),
    ],
)
def test_an_arm_says_how_many_documents_stand_as_text(
    written: str, name: str, texts: int | None, latents: bool
) -> None:
    arm = parse_arm(written)
    assert (arm.texts, arm.latents) == (texts, latents)
    assert parse_arm(arm.name) == arm


@pytest.mark.parametrize("written", ["none+texts0", "bm25@0+texts0", "hybrid@3+texts0+latents", "generate@3+texts1"])
def test_an_arm_that_reads_no_document_from_tokens_is_refused(written: str) -> None:
    with pytest.raises(EvaluationError, match="there is no arm"):
        parse_arm(written)
