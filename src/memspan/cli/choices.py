"""What options come to: the model a command works with, and the documents it looks at. Each imports what it needs when
it is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memspan.cli.importing import imported
from memspan.cli.process import started_by_torchrun
from memspan.errors import MemspanError, UnknownName

if TYPE_CHECKING:
    from memspan.bank.scope import Scope
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
