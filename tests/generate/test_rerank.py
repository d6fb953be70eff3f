"""Rerankers: their scores against slow twins, the order they make, what is read and shown of it, clear refusals."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_loaded
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.bank.texts import TextBank
from memspan.errors import EvaluationError, MemspanError, PluginError, QuestionError, UnknownName
from memspan.eval.arms import parse_arm
from memspan.eval.ranking import Ranker, Ranking
from memspan.eval.runner import RunSettings
from memspan.eval.tasks import TaskSettings
from memspan.events import Done
from memspan.generate import model_rerank
from memspan.generate.interleave import Plan
from memspan.generate.lexical import search_words
from memspan.generate.memory import Memory
from memspan.generate.model_rerank import attention, likelihood
from memspan.generate.rerank import RERANKED, RERANKERS, Means, check_reranker, reranked
from memspan.generate.sampling import Sampling
from memspan.generate.selectors import Needs
from memspan.generate.textual import TextMemory
from memspan.model.modeling import attention_modules
from memspan.ops.attention import attention_shares
from memspan.text.packing import pack_contexts
from memspan.text.questions import Question
from memspan.text.template import Passage
from memspan.types import Document, Evidence, Span

QUESTION = "Where is the heron?"
SHORT = Sampling(max_new_tokens=2)


def evidence(number: int, text: str, **fields: Any) -> Evidence:
    return Evidence(number, str(number), "", text, Span(0, len(text)), 0.0, None, {}, "", **fields)


class Longest:
    """Prefers long texts."""

    needs = Needs(model=False)

    def score(self, question: str, documents: Sequence[Evidence], means: Means) -> list[float]:
        return [float(len(item.text)) for item in documents]


class Told(Longest):
    """Gives the scores that it is made with."""

    def __init__(self, *scores: Any) -> None:
        self.scores = scores

    def score(self, question: str, documents: Sequence[Evidence], means: Means) -> Any:
        return self.scores[: len(documents)]


@pytest.fixture(autouse=True)
def _longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RERANKERS._registered, "longest", Longest())
    monkeypatch.setattr(RERANKERS, "_checked", {})


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Any:
    def register(*scores: Any) -> str:
        monkeypatch.setitem(RERANKERS._registered, "told", Told(*scores))
        RERANKERS._checked.pop("told", None)
        return "told"

    return register


# Scores ---------------------------------------------------------------------------------------------------------------


def test_the_likelihood_is_that_of_the_question_after_the_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_loaded()
    texts = ["the otter of Rome", "a heron", "the lynx of Quito lives in the hills and sleeps all day"]
    documents = [evidence(number, text) for number, text in enumerate(texts)]
    found = likelihood(loaded, QUESTION, documents)
    template = loaded.template
    asked = template.tokens("{x}", x=model_rerank._ASKED + QUESTION)
    num_scored = len(asked) - len(template.tokens("{x}", x=model_rerank._ASKED))
    for text, score in zip(texts, found, strict=True):
        ids = [*template.tokens("{x}", x=text), *asked]
        with torch.inference_mode():
            log_TV = loaded.model.backbone(torch.tensor([ids])).logits[0].log_softmax(-1)
        wanted = [float(log_TV[place - 1, ids[place]]) for place in range(len(ids) - num_scored, len(ids))]
        assert score == pytest.approx(sum(wanted) / num_scored, abs=1e-4)
    monkeypatch.setattr(model_rerank, "BATCH_TOKENS", 1)
    assert likelihood(loaded, QUESTION, documents) == pytest.approx(found, abs=1e-4), "batches change nothing"
    monkeypatch.setattr(model_rerank, "_PASSAGE_TOKENS", 3)
    long, longer = likelihood(loaded, QUESTION, [evidence(1, "heron " * 9), evidence(2, "heron " * 90)])
    assert long == pytest.approx(longer, abs=1e-5), "the end of a long text is not read"


# Order ----------------------------------------------------------------------------------------------------------------


def test_the_best_comes_first_and_equals_keep_their_order() -> None:
    documents = [evidence(1, "bb"), evidence(2, "a"), evidence(3, "cc"), evidence(4, "ddd")]
    documents[0] = evidence(1, "bb", pages=(7,))
    found = reranked("longest", QUESTION, documents, Means())
    assert [item.document_id for item in found] == [4, 1, 3, 2]
    assert all(item in documents for item in found), "nothing of a document changes, its score neither"
    assert reranked("longest", QUESTION, [], Means()) == []
    assert reranked("none", QUESTION, documents, Means()) == documents


def test_what_stands_behind_the_first_follows_as_it_was() -> None:
    documents = [evidence(number, "x" * number) for number in range(1, RERANKED + 4)]
    found = [item.document_id for item in reranked("longest", QUESTION, documents, Means())]
    assert found == [*range(RERANKED, 0, -1), *range(RERANKED + 1, RERANKED + 4)]
    assert [item.document_id for item in reranked("longest", QUESTION, documents, Means(), 2)][:3] == [2, 1, 3]


@pytest.mark.parametrize("scores", [(1.0,), (1.0, math.nan), ()])
def test_a_reranker_that_gives_no_number_is_an_error(told: Any, scores: tuple[float, ...]) -> None:
    with pytest.raises(PluginError, match="the reranker told gave no number"):
        reranked(told(*scores), QUESTION, [evidence(1, "a"), evidence(2, "b")], Means())


def test_numbers_of_other_kinds_are_numbers(told: Any) -> None:
    name = told(torch.tensor(-math.inf), 2, torch.tensor(5.0, dtype=torch.float16))
    found = reranked(name, QUESTION, [evidence(1, "a"), evidence(2, "b"), evidence(3, "c")], Means())
    assert [item.document_id for item in found] == [3, 2, 1]


def test_what_is_missing_is_said() -> None:
    with pytest.raises(
        UnknownName, match="reranker must be one of none, model, likelihood, cross, longest, not 'best'"
    ):
        check_reranker("best", Means())
    for name in ("model", "likelihood"):
        with pytest.raises(MemspanError, match="runs the memory model, and none is loaded"):
            check_reranker(name, Means())
    for nothing in (None, ""):
        with pytest.raises(MemspanError, match="--cross-encoder FOLDER"):
            check_reranker("cross", Means(cross_encoder=nothing))


def test_a_plan_without_a_ranking_has_none_to_rank_anew() -> None:
    for fields in ({"selector": "generate", "documents": 3}, {"selector": "router", "documents": 0}):
        with pytest.raises(MemspanError, match="no documents that could be ranked anew; leave rerank='longest' out"):
            Plan(**{"rounds": 1, "rerank": "longest", **fields})  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="reranker must be one of"):
        Plan("lexical", 1, 3, rerank="best")


# Attention ------------------------------------------------------------------------------------------------------------


def _twin(loaded: Any, question: str, documents: Sequence[Evidence]) -> list[float]:
    """Every layer's attention weights as transformers gives them, of the original model."""
    template, model = loaded.template, loaded.model
    passages = [Passage(item.document_id, item.text) for item in reversed(documents)]
    ids = template.context(question, passages).ids
    model.backbone.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            packed = pack_contexts([template.context(question, passages)], model.config.offset)
            out = model.backbone(packed.ids, output_attentions=True, position_ids=packed.positions)
    finally:
        model.backbone.set_attn_implementation("memspan")
    middle = max(1, round(0.6 * len(out.attentions)))
    weights_TS = torch.cat([out.attentions[layer][0] for layer in (middle - 1, middle)]).mean(0)
    end = len(ids) - len(template.suffix_ids)
    asked = slice(end - template.count_tokens(question), end)
    spans = template.passage_spans(passages)[::-1]
    return [float(weights_TS[asked, span.start : span.end].sum(1).max()) for span in spans]


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
def test_the_attention_is_that_of_the_plain_model(family: str) -> None:
    loaded = tiny_loaded(family)
    documents = [evidence(7, "the otter of Rome"), evidence(3, "a heron"), evidence(9, "lynx " * 7)]
    assert attention(loaded, QUESTION, documents) == pytest.approx(_twin(loaded, QUESTION, documents), abs=1e-5)


def test_long_documents_are_cut_so_that_all_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_loaded()  # 512 tokens
    short, long = evidence(1, "a heron"), [evidence(number, "otter " * 4000) for number in range(2, 11)]
    scores = attention(loaded, QUESTION, [short, *long])
    assert len(scores) == 10 and all(0 <= score <= 1 for score in scores)
    monkeypatch.setattr(model_rerank, "_PASSAGE_TOKENS", 3)
    few, many = ([short, evidence(2, "otter " * count)] for count in (9, 900))
    assert attention(loaded, QUESTION, few) == attention(loaded, QUESTION, many), "the end of a long text is not read"
    with pytest.raises(QuestionError, match="leaves no room to rank documents anew"):
        attention(loaded, "heron " * 160, [short, *long])


@pytest.mark.parametrize(
    "text",
    ["<|im_end|>\n<|im_start|>user\nOtter", "🦦" * 9, " \n\t", "x", "獺 在 羅馬", "[1]. [2]. {question}{passages}"],
)
def test_any_text_has_its_share(text: str) -> None:
    loaded = tiny_loaded()
    for question in (QUESTION, text):
        scores = attention(loaded, question, [evidence(1, text), evidence(2, "a heron"), evidence(3, text)])
        assert len(scores) == 3 and all(0 < score < 1 for score in scores)


def test_a_model_in_16_bits_gives_numbers() -> None:
    loaded = tiny_loaded()
    loaded.model.to(torch.bfloat16)
    scores = attention(loaded, QUESTION, [evidence(1, "a heron"), evidence(2, "an otter")])
    assert all(isinstance(score, float) and 0 < score < 1 for score in scores)


def test_the_forward_ends_behind_the_layers_that_are_looked_at() -> None:
    loaded = tiny_loaded()
    ran: list[int] = []
    for layer in attention_modules(loaded.model.backbone, range(4)):
        layer.register_forward_pre_hook(lambda module, _: ran.append(module.layer_idx))
    attention(loaded, QUESTION, [evidence(1, "a heron"), evidence(2, "an otter")])
    assert ran == [0, 1, 2]


def test_shares_of_attention_are_sums_of_its_weights() -> None:
    torch.manual_seed(0)
    query_HTD, key_GSD = torch.randn(4, 3, 8), torch.randn(2, 9, 8)
    owner_S, mask_TS = torch.tensor([2, 0, 0, 1, 1, 2, 0, 2, 2]), torch.ones(3, 9, dtype=torch.bool).tril(6)
    found = attention_shares(query_HTD, key_GSD, owner_S, 2, mask_TS, 0.3)
    for head in range(4):
        logits = 0.3 * query_HTD[head] @ key_GSD[head // 2].T
        weights = logits.masked_fill(~mask_TS, -math.inf).softmax(-1)
        for owner in range(2):
            torch.testing.assert_close(found[head, :, owner], weights[:, owner_S == owner].sum(1))


# Reading and showing --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Memory]:
    loaded = tiny_loaded(router_trained=True)
    loaded.model.config.text_config.max_position_embeddings = 4096
    with Memory(MemoryBank.create(tmp_path_factory.mktemp("anew") / "bank", manifest_of(loaded)), loaded) as made:
        made.add(Document(str(n), f"The heron {'x ' * n}of Rome.", date=f"2020-01-{31 - n}") for n in range(1, 13))
        yield made


@pytest.mark.parametrize("selector", ["lexical", "hybrid", "router"])
def test_a_search_shows_the_best_of_the_first(memory: Memory, selector: str) -> None:
    plain = memory.search("heron", selector=selector, limit=12)
    anew = memory.search("heron", selector=selector, limit=12, rerank="longest")
    assert [item.external_id for item in anew[RERANKED:]] == [item.external_id for item in plain[RERANKED:]]
    first = sorted(plain[:RERANKED], key=lambda item: -len(item.text))
    assert anew[:RERANKED] == first, "with the scores of the selector"
    assert memory.search("heron", selector=selector, limit=2, rerank="longest") == first[:2]
    assert memory.search("heron", selector=selector, limit=0, rerank="longest") == []
    for none in ("none", None, ""):
        assert memory.search("heron", selector=selector, limit=12, rerank=none) == plain


def test_what_scores_too_little_stays_out_however_good_a_reranker_finds_it(memory: Memory) -> None:
    plain = memory.search("heron", selector="lexical", limit=12)
    least = plain[4].score
    found = memory.search("heron", selector="lexical", limit=12, min_score=least, rerank="longest")
    assert {item.external_id for item in found} == {item.external_id for item in plain if item.score >= least}


def test_words_alone_are_ranked_anew_without_a_model(memory: Memory) -> None:
    with contextlib.closing(TextBank.open(memory.bank.folder)) as bank:
        found = search_words(bank, "heron", limit=3, rerank="longest")
        assert found == memory.search("heron", selector="lexical", limit=3, rerank="longest")
        with pytest.raises(MemspanError, match="the reranker model runs the memory model, and none is loaded"):
            search_words(bank, "heron", rerank="model")


@pytest.mark.parametrize("name", ["longest", "model", "likelihood"])
@pytest.mark.parametrize("rounds", [1, 2])
def test_the_best_of_the_first_are_read(memory: Memory, name: str, rounds: int) -> None:
    how: Any = {"selector": "lexical", "max_documents": 3, "text_only": True, "sampling": SHORT, "rounds": rounds}
    plain = memory.ask("heron?", **how)
    anew = memory.ask("heron?", rerank=name, **how)
    assert len(anew.evidence) == len(plain.evidence) == 3 and len(anew.rounds) == rounds
    assert {one.reranker for one in plain.rounds} == {"none"} and "rerank" not in plain.rounds[0].timings
    assert {one.reranker for one in anew.rounds} == {name} and anew.rounds[0].timings["rerank"] > 0
    if name == "longest":
        pool = memory.search("heron", selector="lexical", limit=RERANKED)
        best = sorted(pool, key=lambda item: -len(item.text))[:3]
        read = sorted(anew.evidence, key=lambda item: -len(item.text))
        assert rounds > 1 or [item.external_id for item in read] == [item.external_id for item in best]
    assert len({item.document_id for item in anew.evidence}) == 3, "no document is read twice"


def test_each_question_of_a_batch_is_ranked_for_itself(memory: Memory) -> None:
    how: Any = {"selector": "lexical", "max_documents": 2, "sampling": SHORT, "rerank": "model"}
    together = memory.ask_batch(["heron?", "Rome?"], **how)
    alone = [memory.ask(question, **how) for question in ("heron?", "Rome?")]
    assert [[x.external_id for x in one.evidence] for one in together] == [
        [x.external_id for x in one.evidence] for one in alone
    ]


class Talks:
    """Another model, which says nothing."""

    name, context = "talks", 8000

    def stream(self, messages: Any, sampling: Sampling) -> Iterator[str]:
        yield "Well."


def test_another_model_reads_the_best_of_the_first(memory: Memory) -> None:
    other = Memory(memory.bank, memory.loaded, answerer=Talks())
    answer = other.ask("heron?", selector="lexical", max_documents=2, rerank="longest")
    assert [item.external_id for item in answer.evidence] == [
        item.external_id for item in memory.search("heron?", selector="lexical", limit=2, rerank="longest")
    ]
    with contextlib.closing(TextBank.open(memory.bank.folder)) as bank:
        texts = TextMemory(bank, Talks())
        found = [event for event in texts.events("heron?", selector="lexical", max_documents=2, rerank="longest")][-1]
        assert isinstance(found, Done) and found.answer.evidence == answer.evidence
        with pytest.raises(MemspanError, match="runs the memory model"):
            list(texts.events("heron?", selector="lexical", rerank="model"))


def test_misspelt_and_missing_ones_are_refused_before_anything_is_looked_up(memory: Memory) -> None:
    for ask in (memory.ask, memory.search, memory.check):
        with pytest.raises(MemspanError, match="reranker must be one of none, model"):
            ask("heron", rerank="Model")
        with pytest.raises(MemspanError, match="--cross-encoder"):
            ask("heron", rerank="cross")
        with pytest.raises(TypeError, match="did you mean 'rerank'"):
            ask("heron", reranker="model")  # type: ignore[call-arg]
    with pytest.raises(MemspanError, match="leave rerank='model' out"):
        memory.ask("heron", max_documents=0, rerank="model")


# Cross-encoders -------------------------------------------------------------------------------------------------------


def save_cross_encoder(folder: Path, labels: int = 1) -> Path:
    """A tiny cross-encoder with random weights."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "heron", "otter", "where", "is", "the", "?", "a"]
    tokenizer = BertTokenizerFast(vocab={word: number for number, word in enumerate(words)})
    torch.manual_seed(1)
    sizes = {"vocab_size": len(words), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "max_position_embeddings": 40}
    config = BertConfig(**sizes, num_labels=labels, initializer_range=1.0)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_cross_encoder_reads_question_and_document_together(memory: Memory, tmp_path: Path) -> None:
    name = str(save_cross_encoder(tmp_path / "cross"))
    documents = [evidence(1, "a heron"), evidence(2, "the otter"), evidence(3, "the heron is where the otter is")]
    found = reranked("cross", QUESTION, documents, Means(cross_encoder=name))
    model = BertForSequenceClassification.from_pretrained(name)
    tokenizer = BertTokenizerFast.from_pretrained(name)
    with torch.inference_mode():
        scores = [float(model(**tokenizer(QUESTION, one.text, return_tensors="pt")).logits) for one in documents]
    assert [item.document_id for item in found] == sorted((1, 2, 3), key=lambda number: -scores[number - 1])
    given = RERANKERS["cross"].score(QUESTION, documents, Means(cross_encoder=name))
    assert given == pytest.approx(scores, abs=1e-4)
    long = evidence(4, "heron " * 1000)
    assert len(reranked("cross", "where " * 100, [*documents, long], Means(cross_encoder=name))) == 4
    answer = memory.ask("heron?", selector="lexical", rerank="cross", cross_encoder=name, sampling=SHORT)
    assert answer.rounds[0].reranker == "cross" and len(answer.evidence) == 5


def test_a_cross_encoder_that_is_none_is_said(tmp_path: Path) -> None:
    several = save_cross_encoder(tmp_path / "several", labels=3)
    (tmp_path / "empty").mkdir()
    documents = [evidence(1, "a heron"), evidence(2, "the otter")]
    for name, told in ((several, "gives several numbers"), (tmp_path / "empty", "cannot be loaded")):
        with pytest.raises(MemspanError, match=told):
            reranked("cross", QUESTION, documents, Means(cross_encoder=str(name)))


# Measuring ------------------------------------------------------------------------------------------------------------


def test_an_arm_ranks_the_first_anew(monkeypatch: pytest.MonkeyPatch, memory: Memory) -> None:
    arms = [parse_arm(name) for name in ("bm25@1", "bm25@1+longest", "bm25@1+cross")]
    ranker = Ranker(arms, depth=2)
    first = Ranking((evidence(1, "a"), evidence(2, "bb"), evidence(3, "ccc")), 1.0)
    monkeypatch.setattr(ranker, "_first", lambda memory, arm, questions: [first] * len(questions))
    question = Question("q", QUESTION, ("Oslo",), ())
    plain, anew = (ranker.rank(memory, arm, [question])[0] for arm in arms[:2])
    assert [item.document_id for item in plain.documents] == [1, 2, 3]
    assert [item.document_id for item in anew.documents] == [2, 1, 3] and anew.seconds > 1
    with pytest.raises(EvaluationError, match="--cross-encoder"):
        ranker.rank(memory, arms[2], [question])
    with pytest.raises(MemspanError, match="--cross-encoder"):
        RunSettings(TaskSettings("jsonl", "asked.jsonl", None, None, (), 0), ("bm25@1+cross",))
