"""A small world to learn: documents that give a key's value, questions that name a key, a model of random layers."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from memspan.config import MSAConfig, TemplateSpec
from memspan.model.modeling import MSAForCausalLM
from memspan.model.runtime import DTYPES
from memspan.text.questions import Question, passage
from memspan.text.template import PromptTemplate
from memspan.train.batch import Collator
from memspan.train.data.stream import ExampleStream, by_source
from memspan.train.loop import RunParts, Trainer
from memspan.train.parameters import choose_parameters
from memspan.train.progress import HoldOut, RouterProgress
from memspan.train.recipe import recipe_of
from memspan.train.settings import Recipe

KEYS, VALUES = [f"k{number}" for number in range(64)], [f"v{number}" for number in range(8)]
_MARKERS = ["<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_LITERALS = ["[", "]", ".", "is", "what", "?", "\n", *"0123456789"]

SPEC = TemplateSpec(
    name="symbols",
    document_prefix="<|im_start|>[{id}]. ",
    document_suffix="[{id}]<|im_end|>",
    context_prefix="<|im_start|>",
    context_suffix="<|im_end|>",
    passage="[{id}]. {text} ",
    grounded_question="{passages} what {question}",
    plain_question="what {question}",
    stops=("<|im_end|>",),
    round_end="<|endoftext|>",
    retrieval_end=".",
)


def symbol_tokenizer() -> PreTrainedTokenizerFast:
    """Symbols, digits and punctuation, a token each; white space separates and is lost."""
    words = [*_MARKERS, *_LITERALS, *KEYS, *VALUES]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    pieces = pre_tokenizers.Split(Regex(r"[kv]\d+|what|is|\d|[\[\].?]"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pieces])
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(_MARKERS[1:])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<unk>"
    )


@dataclass(frozen=True)
class World:
    """Documents that give a key's value; a key is two symbols, and the hold-out's are other keys."""

    train: tuple[Question, ...]
    holdout: HoldOut


def key_value_world(num_train: int, num_holdout: int, seed: int = 0) -> World:
    rng = random.Random(seed)
    keys = rng.sample([(a, b) for a in KEYS for b in KEYS if a != b], num_train + num_holdout)
    questions = []
    for number, (a, b) in enumerate(keys):
        value = rng.choice(VALUES)
        document = passage("", f"{a} {b} is {value}")
        questions.append(Question(f"q{number}", f"{a} {b} ?", (value,), (document,), source="keys"))
    held = tuple(questions[num_train:])
    return World(tuple(questions[:num_train]), HoldOut(held, tuple(q.positives[0] for q in held)))


def random_model(
    seed: int, hidden: int = 64, layers: int = 4, std: float = 0.02, theta: float = 1e4, **msa: Any
) -> MSAForCausalLM:
    """A decoder of random layers, the upper half of which route."""
    torch.manual_seed(seed)
    tokenizer = symbol_tokenizer()
    heads = hidden // 16
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads // 2, head_dim=16, max_position_embeddings=256,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=True, initializer_range=std,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )  # fmt: skip
    backbone = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    settings = {"chunk_size": 16, "top_k_docs": 4, "template": asdict(SPEC), **msa}
    return MSAForCausalLM.from_backbone(backbone, MSAConfig(backbone_config=config, **settings), seed)


def small_recipe(**changes: Any) -> Recipe:
    """Everything trains; two micro-batches of eight questions a step."""
    values: dict[str, Any] = {
        "name": "small",
        "data": {"mixture": "made in the test"},
        "train": [{"name": "routers", "match": "router_", "lr_factor": 2}, {"name": "backbone", "match": "."}],
        "step": {"questions": 8, "micro_batches": 2},
        "batch": {"negatives": 0, "answer": 0.5, "injected_documents": 2, "max_id": 1000},
        "evaluation": {"every": 4, "batch": 8},
        "phases": [{"name": "main", "steps": 8, "lr": 1e-3, "loss": {"lm": 1.0, "routing": 1.0}}],
    }
    return recipe_of({**values, **changes})


def parts_of(
    recipe: Recipe, model: MSAForCausalLM, world: World, *, evaluate: bool = True, rank: int = 0, ranks: int = 1
) -> RunParts:
    """What `memspan.train.setup` would make of a recipe, over a made-up world."""
    template = PromptTemplate(model.config.template_spec, symbol_tokenizer())
    groups = choose_parameters(model, recipe.train, frozen_dtype=DTYPES[recipe.model.frozen_dtype])
    collate = tuple(Collator(template, model.config, phase.batch) for phase in recipe.phases)
    stream = ExampleStream(by_source(world.train), recipe.step.questions, seed=recipe.seed, rank=rank, world=ranks)
    batch = recipe.phases[0].batch
    evaluator = RouterProgress(world.holdout, template, model, recipe.evaluation, batch) if evaluate else None
    return RunParts(model, groups, collate, stream, recipe.objective, evaluator)


def trainer_of(recipe: Recipe, out: Path, world: World, model: MSAForCausalLM | None = None, **options: Any) -> Trainer:
    """A trainer over a random model."""
    model = model or random_model(recipe.seed, hidden=32, layers=2)
    return Trainer(recipe, parts_of(recipe, model, world), out, cpu=True, **options)
