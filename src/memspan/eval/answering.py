"""Answers of an arm: from the documents that were found for it, or in rounds that find them on the way."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from memspan.bank.scope import EVERYTHING
from memspan.errors import EvaluationError, MemspanError
from memspan.eval.arms import Arm
from memspan.eval.ranking import Ranking, check_not_empty, layers_found, served
from memspan.events import Done
from memspan.generate.answerer import Answerer
from memspan.generate.chat import answering_by, check_plan, written_by
from memspan.generate.citing import says_none, without_marks
from memspan.generate.context import fitted_context, room_for
from memspan.generate.decode import Decoding
from memspan.generate.finder import Finder
from memspan.generate.interleave import Interleave, Plan
from memspan.generate.lexical import evidence_of
from memspan.generate.memory import Memory
from memspan.generate.prompts import answer_messages, num_fitting, question_alone, room_of
from memspan.generate.sampling import Sampling
from memspan.generate.searched import answering
from memspan.generate.state import RoundState
from memspan.model.convert import LoadedModel
from memspan.model.memory_api import LayerMemory
from memspan.routing.local import SourceMemory
from memspan.text.questions import Question
from memspan.text.template import Context
from memspan.types import Answer, Evidence, Span

_NO_CONTEXT = Context((), Span(0, 0))


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question with the documents that fit before it, best first.

    Attributes:
        read: those of them that are read from tokens, in the place of their text.
    """

    question: str
    documents: tuple[Evidence, ...]
    context: Context
    read: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class GeneratedAnswer:
    """What the generator wrote, and from what.

    Attributes:
        used: external ids of the documents whose text was before the question, best first.
        prefill, decode: seconds; of a batch its equal share.
        said_none: whether another model said, by a mark, that the documents do not say.
    """

    text: str
    used: tuple[str, ...]
    finish_reason: str
    num_prompt_tokens: int
    num_new_tokens: int
    prefill: float
    decode: float
    said_none: bool = False


def prompt_room(memory: Memory, sampling: Sampling, prompt_tokens: int | None) -> int:
    """Tokens of a prompt, at most: what the model that answers has room for, or fewer where that is wished."""
    if memory.answerer is None:
        return room_for(memory.loaded, sampling.max_new_tokens, prompt_tokens)
    room = room_of(memory.answerer, sampling)
    return room if prompt_tokens is None else min(room, prompt_tokens)


def prompt_of(memory: Memory, arm: Arm, question: str, found: Sequence[Evidence], room: int) -> Prompt:
    """The prompt with as many of the documents as the arm wants and the room allows.

    Raises:
        EvaluationError: another model answers, and the arm gives it latents; or the bank keeps none to read.
    """
    loaded, wanted = memory.loaded, found[: arm.documents]
    if memory.answerer is not None:
        if arm.documents == 0 or arm.texts is not None:
            raise EvaluationError(f"{memory.answerer.name} reads no latents; give the arm {arm.name} documents as text")
        return Prompt(question, tuple(wanted[: num_fitting(question, (), wanted, (), room)]), _NO_CONTEXT)
    if arm.texts is not None and loaded.content is None:
        raise EvaluationError(f"the memory keeps no tokens to read; run {arm.name} with --content-chunk 4")
    if arm.documents == 0 and loaded.content is not None:
        raise EvaluationError(f"the memory keeps tokens; in the place of {arm.name} ask {arm.retriever}@5+texts0")
    texts, others = (wanted, ()) if arm.texts is None else (wanted[: arm.texts], wanted[arm.texts :])
    fitted = fitted_context(loaded, question, texts, room, grounded=bool(others))
    read = tuple(item.document_id for item in others)
    return Prompt(question, (*texts[: fitted.used], *others), fitted.context, read)


def whole_memory(memory: Memory, room: int) -> tuple[Evidence, ...]:
    """Every document of the memory, for the arm `context`.

    Raises:
        EvaluationError: they do not fit into the prompt.
    """
    tokens = memory.bank.catalog.counts(memory.namespace).tokens
    if tokens > room:
        raise EvaluationError(f"the memory has {tokens:,} tokens and the prompt has room for {room:,}")
    stored = memory.bank.catalog.page(memory.namespace, 0, tokens + 1)
    return tuple(map(evidence_of, stored))


def answer(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    memory: LayerMemory | None,
    sampling: Sampling,
    reader: SourceMemory | None = None,
) -> list[GeneratedAnswer]:
    """Answer a batch of prompts.

    Args:
        memory: what the MSA layers attend to.
        reader: has the documents that are read from tokens.
    """
    started = time.perf_counter()
    read = None if reader is None else reader.read([prompt.read for prompt in prompts])
    decoding = Decoding(loaded, [prompt.context for prompt in prompts], memory, sampling, read=read)
    steps = decoding.run()
    next(steps)
    prefilled = time.perf_counter()
    for _ in steps:
        pass
    ended = time.perf_counter()
    return [
        GeneratedAnswer(
            text=row.text.strip(),
            used=tuple(item.external_id for item in prompt.documents),
            finish_reason=row.finish_reason or "length",
            num_prompt_tokens=len(prompt.context.ids),
            num_new_tokens=len(row.ids),
            prefill=(prefilled - started) / len(prompts),
            decode=(ended - prefilled) / len(prompts),
        )
        for row, prompt in zip(decoding.rows, prompts, strict=True)
    ]


def answer_by(answerer: Answerer, prompts: Sequence[Prompt], sampling: Sampling) -> list[GeneratedAnswer]:
    """Answer a batch of prompts by another model. Marks of its answers are no part of what is scored."""
    started = time.perf_counter()
    asked = [
        answer_messages(prompt.question, prompt.documents) if prompt.documents else question_alone(prompt.question)
        for prompt in prompts
    ]
    replies = dict(written_by(answerer, asked, sampling))
    seconds = (time.perf_counter() - started) / len(prompts)
    return [
        GeneratedAnswer(
            text=without_marks(reply.text),
            used=tuple(item.external_id for item in prompt.documents),
            finish_reason=reply.finish_reason or "stop",
            num_prompt_tokens=reply.num_prompt_tokens,
            num_new_tokens=reply.num_new_tokens,
            prefill=0.0,
            decode=seconds,
            said_none=says_none(reply.text, prompt.documents),
        )
        for prompt, reply in ((prompt, replies[place]) for place, prompt in enumerate(prompts))
    ]


def answer_in_rounds(
    memory: Memory, arm: Arm, questions: Sequence[Question], sampling: Sampling, prompt_tokens: int | None
) -> list[tuple[Ranking, GeneratedAnswer]]:
    """Look things up in rounds and answer; the ranking is what was read, in the order it was found.

    Raises:
        EvaluationError: the memory is empty, or the model cannot serve the arm's selector.
    """
    check_not_empty(memory)
    loaded = memory.loaded
    served(loaded, arm)
    plan = Plan(
        arm.selector,
        arm.rounds,
        arm.documents or 0,
        context_tokens=prompt_tokens,
        text_only=not arm.latents and arm.texts is None,
        route_answer=arm.reroute,
        texts=arm.texts,
    )
    with memory.bank.snapshot(memory.namespace) as snapshot:
        finder = Finder(loaded, snapshot, EVERYTHING)
        if memory.answerer is None:
            loop = answering(RoundState(loaded), finder, plan, sampling)
        else:
            loop = _answering_by(memory.answerer, loaded, finder, plan, sampling)
        texts = [question.question for question in questions]
        answers = {place: event.answer for place, event in loop.run(texts) if isinstance(event, Done)}
    return [_read(memory, question, answers[place], len(questions)) for place, question in enumerate(questions)]


def _answering_by(
    answerer: Answerer, loaded: LoadedModel, finder: Finder, plan: Plan, sampling: Sampling
) -> Interleave:
    """
    Raises:
        EvaluationError: the plan needs the memory model to answer.
    """
    plan = replace(plan, route_answer=False)  # what the latents of an arm would be for
    try:
        check_plan(plan, answerer)
    except MemspanError as error:
        raise EvaluationError(str(error)) from error
    return answering_by(answerer, loaded, finder, plan, sampling)


def _read(memory: Memory, question: Question, given: Answer, batch: int) -> tuple[Ranking, GeneratedAnswer]:
    first = given.rounds[0].routed if given.rounds else given.routed
    ranking = Ranking(given.evidence, given.timings["select"] / batch, layers_found(memory, question, first))
    answered = GeneratedAnswer(
        text=without_marks(given.text) if given.answerer else given.text,
        used=tuple(item.external_id for item in given.evidence),
        finish_reason=given.finish_reason,
        num_prompt_tokens=given.num_prompt_tokens,
        num_new_tokens=given.num_new_tokens,
        prefill=sum(given.timings[stage] for stage in ("prefill", "routing", "fetch")) / batch,
        decode=given.timings["decode"] / batch,
        said_none=bool(given.answerer and given.evidence and not given.answered),
    )
    return ranking, answered
