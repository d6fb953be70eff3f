"""`benchmarks/compression.py`: compressed forms of a document's keys and values are what they are said to be."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_loaded
from made import question, questions, written

from memspan.text.questions import UNDATED
from memspan.text.template import Passage, encoded_text

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TOKENS = 8


@pytest.fixture
def compression(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import compression

    yield compression
    for path in BENCHMARKS.glob("*.py"):  # names as plain as "keys" stay for these tests alone
        sys.modules.pop(path.stem, None)


def _looked(compression: Any, seed: int, G: int = 2, S: int = 12, Q: int = 30, D: int = 16) -> Any:
    torch.manual_seed(seed)
    keys, values, none = torch.randn(G, S, D), torch.randn(G, S, D), torch.empty(0)
    return compression.Looked(keys, values, none, none, torch.randn(G, Q, D), D**-0.5)


def _read(looked: Any, rows: Any) -> torch.Tensor:
    """The result of attending to rows."""
    logits = looked.asked @ rows.keys.mT * looked.scaling + rows.bias[:, None]
    return logits.softmax(-1) @ rows.values


@pytest.mark.parametrize("number", range(4))
def test_the_text_is_read_as_the_model_reads_it(compression: Any, number: int) -> None:
    asked = question(number)
    (document,) = asked.positives
    passage = Passage(1, encoded_text(document.title, document.text), UNDATED)
    loaded = tiny_loaded()
    ids, found = list(loaded.template.context(asked.question, [passage]).ids), list[int]()
    while len(found) < TOKENS:  # without a cache
        with torch.no_grad():
            found.append(int(loaded.model(torch.tensor([[*ids, *found]])).logits[0, -1].argmax()))
        if found[-1] in loaded.template.stop_ids:
            found.pop()
            break
    answers = compression.Reader(tiny_loaded(), TOKENS).answers(asked)
    assert answers["text 0-3"] == loaded.template.text(found).strip()
    assert len(answers) > 8 and len(set(answers.values())) > 1


@pytest.mark.parametrize("seed", range(3))
def test_all_rows_lose_nothing_and_fewer_lose_less_if_they_are_fitted(compression: Any, seed: int) -> None:
    looked = _looked(compression, seed)
    whole = _read(looked, compression.Rows.plain(looked.keys, looked.values))
    torch.testing.assert_close(_read(looked, compression.chosen(looked, 1)), whole)
    torch.testing.assert_close(_read(looked, compression.matched(looked, 1)), whole, atol=2e-2, rtol=0)
    lost = [
        (_read(looked, make(looked, 4)) - whole).square().mean() for make in (compression.matched, compression.chosen)
    ]
    assert lost[0] < 0.7 * lost[1]


def test_heads_share_the_rows_of_a_layer_out_among_them(compression: Any) -> None:
    looked = _looked(compression, 0)
    kept = compression.chosen(looked, 4).bias == 0
    assert int(kept.sum()) == 2 * 12 // 4
    most = looked.logits.softmax(-1).amax(1)
    assert float(most[kept].min()) >= float(most[~kept].max())


def test_weights_are_found_that_are_above_0(compression: Any) -> None:
    torch.manual_seed(0)
    matrix, weights = torch.rand(2, 40, 3), torch.tensor([[0.5, 2.0, 1.0], [3.0, 0.2, 1.5]])
    wanted = (matrix @ weights[..., None])[..., 0]
    torch.testing.assert_close(compression.nonnegative(matrix, wanted, rounds=20_000), weights, atol=1e-2, rtol=0)
    assert float(compression.nonnegative(matrix, torch.zeros(2, 40)).min()) > 0


def test_keys_are_rotated_there_and_back(compression: Any) -> None:
    reader = compression.Reader(tiny_loaded(), TOKENS)
    keys, places = torch.randn(2, 5, 16), torch.arange(7, 12).float()
    torch.testing.assert_close(reader._rotate(reader._rotate(keys, places), places, back=True), keys)


def test_a_mean_of_one_token_is_the_token(compression: Any) -> None:
    reader = compression.Reader(tiny_loaded(), TOKENS)
    _, looked = reader._looked(list(range(5, 40)), first=9)
    for one in looked.values():
        rows = reader._mean(one, 1)
        torch.testing.assert_close(rows.keys, one.keys)
        torch.testing.assert_close(rows.values, one.values)
        assert reader._mean(one, 4).keys.shape[1] == -(-26 // 4)


def test_answers_are_kept_and_the_rest_is_asked_for_later(compression: Any, tmp_path: Path) -> None:
    files = [written(tmp_path / f"{name}_dev.jsonl", questions(3, 5 * place)) for place, name in enumerate("ab")]
    reader, out = compression.Reader(tiny_loaded(), 2), tmp_path / "out.jsonl"
    first = list(compression.answered(reader, files, 1, out))
    assert [one["set"] for one in first] == ["a_dev", "b_dev"]
    asked: list[str] = []
    reader.answers = lambda question: asked.append(question.id) or {"none": "Rome", "text": question.answers[0]}
    for line in first:
        line["answers"] = {"none": "Rome", "text": line["wanted"][0]}
    out.write_text("".join(json.dumps(line) + "\n" for line in first))
    found = list(compression.answered(reader, files, 3, out))
    assert len(found) == 6 and len(asked) == 4 and not {line["id"] for line in first} & set(asked)
    assert len(out.read_text().splitlines()) == 6
    scored = compression.scored(found)
    assert scored["b_dev"]["text"]["f1"]["mean"] == 1 and scored["a_dev"]["none"]["holds"]["count"] == 3
