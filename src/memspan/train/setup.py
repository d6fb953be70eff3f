"""A recipe becomes a run: the model, what of it trains, the data, the hold-out, the teacher. And its product.

OUT/model/        the checkpoint that `model.source` was converted into
OUT/frozen/       documents encoded once (`frozen_memory`)
OUT/weights/      weights in the number formats of the run, where several processes map them
OUT/adapter/, or OUT/checkpoint/     what the run leaves behind
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random

import torch
from filelock import FileLock

from memspan.errors import DataError, TrainingError
from memspan.model.adapter import apply_adapter, read_weights, save_adapter, take_lora
from memspan.model.convert import STORED, LoadedModel, convert, load, save_checkpoint
from memspan.model.fingerprint import sample
from memspan.model.lora import merge_lora
from memspan.model.modeling import MSAForCausalLM, is_lora, is_router
from memspan.model.runtime import DTYPES, pick_device
from memspan.model.shipped import NO_ADAPTER
from memspan.text.questions import Question
from memspan.train.batch import Collator, TrainBatch
from memspan.train.checkpoint import CheckpointStore
from memspan.train.data.holdout import holdout_bank, split_holdout
from memspan.train.data.mix import read_mixture
from memspan.train.data.stream import ExampleStream, by_source
from memspan.train.data.texts import TextSettings, from_texts
from memspan.train.frozen import FrozenMemory
from memspan.train.loop import CHECKPOINTS, RunParts
from memspan.train.parallel import assign, map_weights
from memspan.train.parameters import ParameterGroup, choose_parameters
from memspan.train.progress import HoldOut, RouterProgress
from memspan.train.recipe import plain
from memspan.train.settings import Recipe
from memspan.train.step import TeacherScores
from memspan.train.teacher import load_teacher
from memspan.train.whiten import whiten_routers
from memspan.types import Document

WEIGHTS = "weights"
CORPUS = "corpus"
_CORPUS_HOLDOUT, _CORPUS_BANK = 128, 2500
_CPU = torch.device("cpu")
# Documents and questions whose states whiten the routers.
_WHITENED = 1024


@dataclass(frozen=True)
class RunData:
    """What a run learns from.

    Attributes:
        fillers: documents to fill memories up with: all of the training data.
        weights: of drawing, by source; None: by their numbers of questions.
        group: questions that follow each other in a source and stay together; see `ExampleStream`.
    """

    train: tuple[Question, ...]
    holdout: HoldOut
    fillers: tuple[Document, ...]
    weights: dict[str, float] | None = None
    group: int = 1


@dataclass(frozen=True)
class PreparedRun:
    """A run, ready to begin."""

    parts: RunParts
    loaded: LoadedModel
    data: RunData


def build_run(
    recipe: Recipe, out: Path, *, rank: int = 0, world: int = 1, tell: Callable[[str], None] = print
) -> PreparedRun:
    """Load and make everything that a recipe names.

    Writes `out/model`, `out/frozen` and `out/weights`, where the recipe and `world` ask for what is in them.

    Args:
        rank, world: this process, of so many.
        tell: hears what is being done.

    Raises:
        MemspanError, ValueError: something is missing, or does not fit together.
    """
    data = load_data(recipe)
    tell(f"{len(data.train):,} questions to train on, {len(data.holdout.questions)} held out")
    loaded, groups = load_model(recipe, out, _own_device(recipe, rank), shared=world > 1)
    begun = bool(CheckpointStore(out / CHECKPOINTS, recipe.checkpoints.keep).steps())  # checkpoints have the routers
    if recipe.model.initial_routers == "whitened" and not begun:
        tell("whitening the routers")
        _whiten(recipe, loaded, data)
    frozen = _freeze(recipe, loaded, data, out, tell)
    sources = by_source(data.train)
    stream = ExampleStream(
        sources,
        recipe.step.questions,
        weights=data.weights,
        one_source_per_batch=recipe.data.one_source_per_batch,
        group=data.group,
        seed=recipe.seed,
        rank=rank,
        world=world,
    )
    fill = {"fillers": data.fillers, "document_ids": frozen.ids if frozen else None}
    collate = tuple(Collator(loaded.template, loaded.model.config, phase.batch, **fill) for phase in recipe.phases)
    progress = RouterProgress(
        data.holdout,
        loaded.template,
        loaded.model,
        recipe.evaluation,
        recipe.phases[0].batch,
        encode_tokens=recipe.objective.batch_tokens,
        seed=recipe.seed,
        frozen_in=out / "frozen" if frozen else None,
    )
    teacher = _teacher(recipe, data)
    parts = RunParts(loaded.model, groups, collate, stream, recipe.objective, progress, teacher, frozen)
    return PreparedRun(parts, loaded, data)


def _own_device(recipe: Recipe, rank: int) -> torch.device:
    """Where a process loads its weights: those that are to be sharded go to its GPU a layer at a time, later."""
    device = pick_device()
    if device.type == "cpu" or recipe.model.sharding != "none":
        return _CPU
    return torch.device(device.type, rank % torch.accelerator.device_count())


def load_model(
    recipe: Recipe, out: Path, device: torch.device = _CPU, *, shared: bool = False
) -> tuple[LoadedModel, tuple[ParameterGroup, ...]]:
    """The model that a run begins with, its trained parameters chosen.

    The checkpoint's files are mapped, and weights converted where they will be. Writes `out/model`, where the recipe
    names a source, and with `shared` on a CPU `out/weights`.

    Args:
        shared: whether other processes of this machine load the same.
    """
    settings = recipe.model
    path = settings.checkpoint or (_converted(recipe, out) if settings.source else None)
    adapter = Path(settings.adapter).expanduser() if settings.adapter else None
    weights = read_weights(adapter) if adapter else {}
    with_lora = any(map(is_lora, weights))
    # LoRA that goes on training must stay apart; loading it as serving does would merge it.
    named = {"adapter": NO_ADAPTER if with_lora else adapter or NO_ADAPTER, "device": str(device)}
    loaded = load(path, dtype=STORED, **named)
    if getattr(loaded.model, "hf_quantizer", None) is not None:
        raise TrainingError(f"the weights in {loaded.path} are quantized, and do not train; train the plain model")
    if (with_lora and recipe.lora is None) or _rounded(loaded.model):
        loaded = load(path, dtype="float32", **named)
    model = loaded.model
    if with_lora:
        assert adapter is not None, "weights are an adapter's"
        if recipe.lora is not None:
            take_lora(model, adapter, recipe.lora.targets)
        elif recipe.product == "adapter":
            raise TrainingError(f"the adapter {adapter} has LoRA; name `lora` in the recipe, or product: checkpoint")
        else:
            apply_adapter(model, adapter)
    choose = partial(
        *(choose_parameters, model, recipe.train, recipe.lora),
        seed=recipe.seed,
        frozen_dtype=DTYPES[settings.frozen_dtype],
    )
    if shared and device.type == "cpu":
        groups = map_weights(model, _weights_file(recipe, model, out), lambda convert: choose(convert=convert))
    else:
        groups = choose()
    if recipe.lora is not None or not with_lora:
        _take_up(model, weights, str(adapter))  # exactly: they may have been rounded to the checkpoint's format
    model.config.router_trained |= with_lora and recipe.lora is not None
    return loaded, groups


def _rounded(model: MSAForCausalLM) -> bool:
    """Whether a family computes with constants that were made in the checkpoint's number format."""
    return any(buffer.is_floating_point() and buffer.dtype.itemsize < 4 for buffer in model.buffers())


def _weights_file(recipe: Recipe, model: MSAForCausalLM, out: Path) -> Path:
    """Where the weights are that `load_model` makes of a recipe and a loaded model."""
    values = plain(recipe)
    settings = json.dumps([values[name] for name in ("model", "train", "lora", "seed")])
    return out / WEIGHTS / f"{sample(model.named_parameters(), settings)[:16]}.safetensors"


def _converted(recipe: Recipe, out: Path) -> Path:
    """The checkpoint that the recipe's source is converted into, once."""
    settings, folder = recipe.model, out / "model"
    named = {name: value for name in ("chunk_size", "top_k_docs") if (value := getattr(settings, name))}
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / "model.lock"):
        if not (folder / "config.json").is_file():
            convert(
                settings.source,
                folder,
                template=settings.template or None,
                msa_layers=settings.msa_layers or None,
                similarity=settings.similarity or None,
                seed=recipe.seed,
                **named,
            )
    return folder


def _take_up(model: MSAForCausalLM, weights: dict[str, torch.Tensor], adapter: str) -> None:
    """Go on with the weights of an adapter, LoRA and all."""
    parameters = dict(model.named_parameters())
    wrong = [n for n, w in weights.items() if n not in parameters or parameters[n].shape != w.shape]
    if wrong:
        raise TrainingError(f"the adapter {adapter} does not fit the recipe's lora and model, as {wrong[0]} shows")
    for name, weight in weights.items():
        assign(parameters[name], weight)


def load_data(recipe: Recipe) -> RunData:
    """The questions of a recipe's mixture, or made of its corpus, and their hold-out."""
    data = _corpus(recipe) if recipe.corpus else _mixture(recipe)
    cut = data.holdout.cut(recipe.data.holdout_questions, recipe.data.holdout_documents)
    return replace(data, holdout=cut)


def _mixture(recipe: Recipe) -> RunData:
    mixed = read_mixture(Path(recipe.data.mixture).expanduser())
    bank = tuple(item.document for item in mixed.bank)
    fillers = _distinct(document for q in mixed.train for document in (*q.positives, *q.negatives))
    return RunData(mixed.train, HoldOut(mixed.holdout, bank), fillers, dict(mixed.weights), mixed.group)


def _corpus(recipe: Recipe) -> RunData:
    made = from_texts([Path(recipe.corpus).expanduser()], CORPUS, TextSettings(seed=recipe.seed))
    split = split_holdout(made.questions, _CORPUS_HOLDOUT, recipe.seed)
    if not split.train or not split.holdout:
        raise DataError(
            f"{recipe.corpus} gave {len(made.questions)} questions, too few to hold some out: give more text"
        )
    bank = holdout_bank(split.holdout, {CORPUS: split.train}, _CORPUS_BANK, recipe.seed)
    holdout = HoldOut(split.holdout, tuple(item.document for item in bank))
    return RunData(split.train, holdout, _distinct(made.passages))


def _distinct(documents: Iterable[Document]) -> tuple[Document, ...]:
    return tuple({document.external_id: document for document in documents}.values())


def _whiten(recipe: Recipe, loaded: LoadedModel, data: RunData) -> None:
    """Set the routers from the states of some of the training data; the same in every process."""
    rng = Random(f"{recipe.seed}:whiten")
    batch, template = recipe.phases[0].batch, loaded.template
    collator = Collator(template, loaded.model.config, batch)
    documents = rng.sample(data.fillers, min(_WHITENED, len(data.fillers)))
    questions = rng.sample(data.train, min(_WHITENED, len(data.train)))
    tokens = [template.document(rng.randint(1, batch.max_id), collator.part(document)) for document in documents]
    contexts = [template.context(question.question) for question in questions]
    whiten_routers(loaded.model, tokens, contexts, seed=recipe.seed, batch_tokens=recipe.objective.batch_tokens)


def _freeze(
    recipe: Recipe, loaded: LoadedModel, data: RunData, out: Path, tell: Callable[[str], None]
) -> FrozenMemory | None:
    """All documents of the training data, encoded once."""
    if not recipe.frozen_memory:
        return None
    used = (document for q in data.train for document in (*q.positives, *q.negatives))
    documents = _distinct((*used, *data.fillers))
    tell(f"encoding {len(documents):,} documents once, into {out / 'frozen'}")
    batch = recipe.phases[0].batch
    collator = Collator(loaded.template, loaded.model.config, batch)
    return FrozenMemory.build(
        loaded.model,
        loaded.template,
        documents,
        collator.part,
        out / "frozen",
        seed=recipe.seed,
        max_id=max(batch.max_id, len(documents)),
        encode_tokens=recipe.objective.batch_tokens,
        on_progress=_every(2000, tell),
    )


def _every(documents: int, tell: Callable[[str], None]) -> Callable[[int, int], None]:
    shown = [0]

    def progress(done: int, total: int) -> None:
        if done >= shown[0] + documents:
            shown[0] = done
            tell(f"{done:,} of {total:,} documents")

    return progress


def _teacher(recipe: Recipe, data: RunData) -> TeacherScores | None:
    if recipe.teacher is None:
        return None
    texts = [document.text for document in data.fillers]
    teacher = load_teacher(recipe.teacher.name, texts)
    return lambda batch: teacher.scores(batch.questions, batch.document_texts)


def write_product(recipe: Recipe, out: Path, step: int) -> Path:
    """Make what a run leaves behind of the checkpoint of a step: an adapter, or a whole checkpoint.

    Writes `out/adapter/` or `out/checkpoint/`. The model is loaded anew, so that this does not depend on how many
    processes have trained.
    """
    trained = CheckpointStore(out / CHECKPOINTS, recipe.checkpoints.keep).load(step).trained
    loaded, groups = load_model(recipe, out)
    model = loaded.model
    for name, value in trained.items():
        assign(model.get_parameter(name), value)
    model.config.router_trained = True
    dtype = DTYPES[recipe.product_dtype]
    if recipe.product == "checkpoint":
        merge_lora(model)
        torch.nn.Module.to(model, dtype)
        save_checkpoint(model, loaded.template.tokenizer, out / "checkpoint")
        return out / "checkpoint"
    names = {name for group in groups for name in group.parameters}
    names |= set(read_weights(Path(recipe.model.adapter).expanduser())) if recipe.model.adapter else set()
    further = sorted(name for name in names if not is_router(name) and not is_lora(name))
    belongs_to = model.config.backbone_fingerprint
    assert belongs_to is not None, "set when the model was loaded"
    save_adapter(model, out / "adapter", belongs_to, further, dtype)
    return out / "adapter"


def first_batch(recipe: Recipe, run: PreparedRun) -> TrainBatch:
    """A batch of the first phase, for a look before the run begins."""
    questions = next(ExampleStream(by_source(run.data.train), recipe.step.questions, seed=recipe.seed))
    return run.parts.collate[0](questions, Random(f"{recipe.seed}:look"))
