"""What options come to: the model a command works with, and the documents it looks at. Each imports what it needs when
it is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memspan.cli.importing import imported
from memspan.cli.process import started_by_torchrun
from memspan.errors import MemspanError, UnknownDocument, UnknownName
from memspan.places import quoted

if TYPE_CHECKING:
    from memspan.bank.estimate import Estimate
    from memspan.bank.scope import Scope
    from memspan.bank.texts import TextBank
    from memspan.bench.plan import CapacityPlan
    from memspan.generate.answerer import Answerer
    from memspan.generate.endpoint import Endpoint
    from memspan.generate.memory import Memory
    from memspan.model.convert import LoadedModel
    from memspan.text.readers import ReadOptions
    from memspan.types import AddReport


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """The model a command works with; see `memspan.model.convert.load` for the fields."""

    path: Path | None
    adapter: str | None
    dtype: str | None
    device: str | None
    weights: str | None = None
    memory_budget: str | None = None
    gpu_memory_budget: str | None = None
    content_chunk: int | None = None
    answerer: Answerer | None = None

    def load(self, *banks: PathLike[str]) -> LoadedModel:
        """The model; where none was named, that of the first of these banks that there is."""
        return imported("models").load_model(self, banks)

    def open(self, bank: PathLike[str], namespace: str = "default", create: bool = False) -> Memory:
        """The bank with this model; `create` makes an empty one where there is none, in this process alone."""
        return imported("models").open_memory(self, bank, namespace, create)


@dataclass(frozen=True, slots=True)
class AnswererChoice:
    """The other model that answers, if one was named."""

    url: str | None
    model: str | None
    context: int | None

    def endpoint(self) -> Endpoint | None:
        """
        Raises:
            AnswererError: only a part of it was named, or the endpoint cannot be one.
        """
        from memspan.errors import AnswererError
        from memspan.generate.endpoint import Endpoint, key_from_environment

        if self.url is None:
            if self.model is not None or self.context is not None:
                raise AnswererError(
                    "--answer-model and --answer-context need --answer-with URL, which names the endpoint"
                )
            return None
        if self.model is None:
            raise AnswererError("--answer-with needs --answer-model NAME: what the endpoint calls the model")
        return Endpoint(self.url, self.model, key_from_environment(), room=self.context)


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """Who encodes, if not this process."""

    engine: str | None
    address: str | None
    workers: int | None

    def encoder(self, device: str | None) -> Callable[..., AddReport] | None:
        """What encodes a memory's pending documents, as `memspan.integrations.ray.encode`; None: this process does.

        Args:
            device: of each worker.

        Raises:
            MemspanError: there is no such engine, its packages are missing, or an option needs it.
        """
        if self.engine is None:
            if self.address is not None or self.workers is not None:
                raise MemspanError("--address and --workers are of a Ray cluster; they need --engine ray")
            return None
        if self.engine != "ray":
            raise UnknownName(f"--engine: there is no engine {self.engine!r}; there is ray")
        if started_by_torchrun():
            raise MemspanError("--engine ray starts its own processes; run the command without torchrun")
        try:
            from memspan.integrations.ray import encode
        except ImportError as error:
            raise MemspanError(str(error)) from error
        num_gpus = 0.0 if device in (None, "cpu") else 1.0
        return partial(encode, None, address=self.address, workers=self.workers or 2, num_gpus=num_gpus)


@dataclass(frozen=True, slots=True)
class TargetChoice:
    """A memory that is planned; see `memspan.bench.plan` for the fields.

    Attributes:
        shape: stands for a model that is not here.
    """

    tokens: str
    gpus: str
    price: float | None
    shape: str | None

    def plan(self, model: ModelChoice, documents: Callable[[LoadedModel], Estimate] | None = None) -> CapacityPlan:
        """What it takes.

        Args:
            documents: estimates files, as a sample of the memory.

        Raises:
            MemspanError: the target, the machines or the price are none, or a shape and something that is here were
                named.
        """
        from memspan.bench.plan import PlannedModel, check_price, parse_gpus, parse_tokens, plan

        tokens, (count, kind) = parse_tokens(self.tokens), parse_gpus(self.gpus)
        check_price(self.price)
        if model.content_chunk is not None:
            raise MemspanError("--target plans a bank whose content is of means; leave out --content-chunk")
        if self.shape is not None:
            if documents is not None or model.path is not None:
                raise MemspanError(
                    "--shape stands for a model that is not here, and --model (or MEMSPAN_MODEL) and files need one "
                    "that is; leave out either"
                )
            return plan(PlannedModel.of_shape(self.shape), tokens, count, kind, self.price)
        loaded = model.load()
        sample = None if documents is None else documents(loaded)
        if sample is not None and loaded.model.device.type != "cpu":  # its speed is not that of a machine without
            sample = replace(sample, tokens_per_second=0.0)
        return plan(PlannedModel.of(loaded), tokens, count, kind, self.price, sample)


@dataclass(frozen=True, slots=True)
class RerankChoice:
    """Who ranks the first documents anew, if somebody was named; see `memspan.generate.rerank`."""

    rerank: str | None
    cross_encoder: str | None

    def uses_model(self) -> bool:
        """Whether the memory model does, once it is clear that everything else is there.

        Raises:
            MemspanError: there is no such reranker, or what it needs is missing.
        """
        from memspan.generate.rerank import NONE, RERANKERS, Means, check_name, check_reranker

        name = self.rerank or NONE
        check_name(name)
        if name != NONE and RERANKERS[name].needs.model:
            return True
        check_reranker(name, Means(cross_encoder=self.cross_encoder))
        return False


@dataclass(frozen=True, slots=True)
class ScopeChoice:
    """The documents a command looks at."""

    namespace: str
    expressions: Sequence[str]
    as_of: str | None
    known_at: str | None = None

    @property
    def where(self) -> dict[str, Any]:
        from memspan.bank.scope import parse_expressions

        return parse_expressions(self.expressions)

    @property
    def scope(self) -> Scope:
        from memspan.bank.scope import Scope

        return Scope.parse(self.where, self.as_of, self.known_at)


@dataclass(frozen=True, slots=True)
class ReadingChoice:
    """How files are read; see `memspan.text.readers.formats.ReadOptions` for the fields."""

    format: str | None
    encoding: str | None
    text_column: str | None
    title_column: str | None
    ocr: bool
    ocr_language: str

    @property
    def options(self) -> ReadOptions:
        from memspan.text.readers import ReadOptions

        return ReadOptions(**asdict(self))


def chosen_ids(
    bank: TextBank, given: Sequence[str], expressions: Sequence[str], namespace: str
) -> tuple[list[str], list[str]]:
    """The external ids that were named, and those that were found: by patterns, and with a filter by that."""
    from memspan.bank.scope import Scope, parse_expressions
    from memspan.text.folders import has_wildcards, matches

    catalog = bank.catalog
    if expressions:
        in_scope = catalog.external_ids(namespace, Scope.parse(parse_expressions(expressions)))
        of_names = (id for id in in_scope if not given or any(id == one or matches(id, one) for one in given))
        return [], list(of_names)
    patterns = [one for one in given if has_wildcards(one) and bank.find(one, namespace, catalog) is None]
    every = catalog.external_ids(namespace) if patterns else []
    for pattern in patterns:
        if not any(matches(id, pattern) for id in every):
            raise UnknownDocument(
                f"no document matches {pattern!r} in namespace {namespace!r}; see: memspan ls {quoted(bank.place)}"
            )
    found = [id for id in every if any(matches(id, pattern) for pattern in patterns)]
    named = [one for one in given if one not in patterns]
    check_known(bank, named, namespace)
    return named, found


def check_known(bank: TextBank, given: Sequence[str], namespace: str) -> None:
    """
    Raises:
        UnknownDocument: the bank has no document of one of these ids, and has some that may be meant.
    """
    from memspan.bank.naming import meant_ids

    unknown = next((one for one in given if bank.find(one, namespace, bank.catalog) is None), None)
    near = [] if unknown is None else meant_ids(bank.catalog, namespace, unknown)
    if near:
        shown = " or ".join(map(quoted, near))
        raise UnknownDocument(f"there is no document {unknown!r} in namespace {namespace!r}; did you mean {shown}?")


def missing_namespace(bank: TextBank, namespace: str) -> str:
    """What to say of a namespace that a bank does not have; empty of one that it has."""
    known = bank.catalog.namespaces()
    names = ", ".join(map(quoted, known)) or "none yet"
    return "" if namespace in known else f"there is no namespace {namespace!r} in {bank.place}; its namespaces: {names}"
