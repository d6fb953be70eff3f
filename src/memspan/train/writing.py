"""What a model writes for hold-out questions while it is trained: is it empty, malformed, right?"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from memspan.config import MSAConfig
from memspan.model.modeling import MSAForCausalLM
from memspan.text.questions import Question
from memspan.text.rounds import RoundProtocol
from memspan.text.template import Context, PromptTemplate
from memspan.train.batch import IGNORED, Collator, TrainBatch
from memspan.train.batch_settings import BatchSettings
from memspan.train.greedy import decode_greedily
from memspan.train.memory import BatchMemory, encode_documents
from memspan.train.parallel import is_sharded, shared_out
from memspan.train.settings import EvaluationSettings
from memspan.types import Document, Span

KINDS = ("answer", "latent", "generate")


class WritingProgress:
    """Has the model write freely, greedily, what the training samples of hold-out questions ask for.

    Every batch of them has its own memory, as in training. Figures, for each KIND of sample that a phase trains
    (`answer` with texts put in, `latent` without, `generate` of documents' ids), as shares of the questions:

        KIND/empty       nothing but white space was written
        KIND/malformed   (generate) no end marker, or something between the ids that is none
        KIND/exact       what was to be written: the answer but for case, or exactly the documents to be named
    """

    def __init__(
        self,
        questions: Sequence[Question],
        documents: Sequence[Document],
        template: PromptTemplate,
        config: MSAConfig,
        settings: EvaluationSettings,
        seed: int = 0,
    ) -> None:
        # Every so many-th, so that all sources have some.
        stride = max(1, len(questions) // max(1, settings.generations))
        self._questions = list(questions[::stride][: settings.generations])
        self._documents, self._template, self._config = documents, template, config
        self._settings, self._seed = settings, seed

    def measure(self, model: MSAForCausalLM, batch: BatchSettings) -> dict[str, float]:
        """The figures of the kinds of samples that `batch` has; none where nothing is to be generated."""
        found: dict[str, float] = {}
        for kind in KINDS:
            if getattr(batch, kind) > 0 and self._questions:
                found |= self._of_kind(model, kind, batch)
        return found

    def _of_kind(self, model: MSAForCausalLM, kind: str, batch: BatchSettings) -> dict[str, float]:
        # Of the hold-out as it is: figures of different recipes can be compared.
        alone = replace(batch, counterfactual=0.0, outdated=0.0, **{name: float(name == kind) for name in KINDS})
        collator = Collator(self._template, self._config, alone, fillers=self._documents)
        reader = _Rounds(self._template) if kind == "generate" else _Answers(self._template)
        rng, size, questions = random.Random(f"{self._seed}:writing:{kind}"), self._settings.batch, self._questions
        made = [collator(questions[start : start + size], rng) for start in range(0, len(questions), size)]

        def judge(batch: TrainBatch) -> list[Mapping[str, bool]]:
            return [reader.judge(*pair) for pair in self._written(model, batch, reader)]

        # How many forwards a batch takes shows as it is written, and sharded weights need all processes in each.
        of_batches = [judge(batch) for batch in made] if is_sharded(model) else shared_out(model, judge, made)
        judged = list(itertools.chain.from_iterable(of_batches))
        return {f"{kind}/{name}": sum(row[name] for row in judged) / len(judged) for name in (judged or [{}])[0]}

    def _written(
        self, model: MSAForCausalLM, batch: TrainBatch, reader: _Rounds | _Answers
    ) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
        """What the model writes and what it was to write, for every question of a batch that has something to learn."""
        found = [pair for row in range(len(batch.questions)) if (pair := prompt(batch, row)) is not None]
        if not found:
            return iter(())
        prompts, wanted = zip(*found, strict=True)
        with torch.no_grad():
            documents = encode_documents(model, batch.documents)
        memory = BatchMemory(documents, batch.document_ids, self._config)
        written = decode_greedily(model, prompts, memory, self._settings.max_new_tokens, reader.ended)
        return zip(written, wanted, strict=True)


class _Answers:
    """Reads answers."""

    def __init__(self, template: PromptTemplate) -> None:
        self._template = template

    def ended(self, ids: Sequence[int]) -> bool:
        text = self._template.text(ids)
        return ids[-1] in self._template.stop_ids or any(stop in text for stop in self._template.stop_strings)

    def judge(self, written: Sequence[int], wanted: Sequence[int]) -> dict[str, bool]:
        ours, theirs = self._text(written), self._text(wanted)
        return {"empty": not ours, "exact": ours.casefold() == theirs.casefold()}

    def _text(self, ids: Sequence[int]) -> str:
        text = self._template.text(ids)
        for stop in self._template.stop_strings:
            text = text.partition(stop)[0]
        return text.strip()


class _Rounds:
    """Reads the ids of documents that a round names."""

    def __init__(self, template: PromptTemplate) -> None:
        self._protocol = RoundProtocol(template)

    def ended(self, ids: Sequence[int]) -> bool:
        return self._protocol.ended(ids)

    def judge(self, written: Sequence[int], wanted: Sequence[int]) -> dict[str, bool]:
        ours, theirs = (self._protocol.parse(self._protocol.text(ids)) for ids in (written, wanted))
        return {
            "empty": not self._protocol.text(written).strip(),
            "malformed": bool(ours.malformed) or not ours.end,
            "exact": ours.end == theirs.end and set(ours.ids) == set(theirs.ids),
        }


def prompt(batch: TrainBatch, row: int) -> tuple[Context, tuple[int, ...]] | None:
    """A training sample up to the first token it is to learn, and the tokens it is to learn there.

    None: it learns none.
    """
    contexts, learned_T = batch.contexts, batch.labels_BT[row] != IGNORED
    if not bool(learned_T.any()):
        return None
    begin = int(contexts.valid[row].int().argmax())
    ids = contexts.ids[row, begin:].tolist()
    learned = learned_T[begin:].tolist()
    start = learned.index(True)
    end = next((place for place in range(start, len(ids)) if not learned[place]), len(ids))
    routing = [place for place, routes in enumerate(contexts.routes[row, begin:].tolist()) if routes]
    whole = Span(routing[0], routing[-1] + 1)
    gaps = (Span(before + 1, after) for before, after in itertools.pairwise(routing) if after > before + 1)
    return Context(tuple(ids[:start]), whole, tuple(gaps)), tuple(ids[start:end])
