"""`MSAForCausalLM`: a Hugging Face decoder whose upper layers also attend to a memory. Only the difference from it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, Cache, GenerationMixin, PreTrainedModel, StaticCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from memspan.config import MSAConfig
from memspan.errors import CheckpointError, UnsupportedBackbone
from memspan.model.attention import ATTENTION_NAME
from memspan.model.costs import StepCosts
from memspan.model.fingerprint import fingerprint, mapped_weights, sample
from memspan.model.lower import keep_lower
from memspan.model.memory_api import AllRecorded, DocumentStep, EncodeStep, QueryStep, Step
from memspan.model.packed import DecodeWeights, reading_packed
from memspan.model.router import RoutedAttention, add_router
from memspan.ops.pooling import num_chunks
from memspan.ops.scoring import fold_keys
from memspan.ops.transfer import to_device
from memspan.types import EncodedDocuments

_log = logging.getLogger(__name__)

_PREFIX = "backbone."
# Fields of a config that have no part in `weights_fingerprint`.
_INCIDENTAL = {"_name_or_path", "architectures", "dtype", "transformers_version", "use_cache"}


class MSAForCausalLM(PreTrainedModel, GenerationMixin):
    """A decoder with memory sparse attention (paper 3.2).

    `forward` without `memory=` is the backbone, unchanged. Checkpoints use the backbone's own key names.

    Attributes:
        decode_weights: the task of `memspan.model.decoding.prepare` before decoding steps; None: nothing.
        decode_steps: decoding steps so far.
        step_costs: seconds of decoding steps.
        prefill_tokens: tokens of a prefill that attend at a time, at most, where attention needs a mask: fewer take
            less memory beside K and V.
    """

    decode_weights: DecodeWeights | None = None
    prefill_tokens: int = 2048

    config: MSAConfig
    config_class = MSAConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: MSAConfig) -> None:
        super().__init__(config)
        self.step_costs, self.decode_steps = StepCosts(), 0
        try:
            self.backbone = AutoModelForCausalLM.from_config(config.backbone_config, attn_implementation=ATTENTION_NAME)
        except KeyError as error:
            family = config.text_config.model_type
            raise UnsupportedBackbone(f"{family} has no exchangeable attention function ({error})") from error
        keep_lower(list(decoder_layers(self.backbone, range(config.layers[0])).values()))
        for attention in attention_modules(self.backbone, config.layers):
            heads = config.num_heads, config.num_kv_heads, config.head_dim
            add_router(attention, config.text_config.hidden_size, *heads)
        self.post_init()

    @classmethod
    def from_backbone(cls, backbone: PreTrainedModel, config: MSAConfig, seed: int = 0) -> MSAForCausalLM:
        """Take over a loaded decoder's weights (shared, not copied) and add freshly initialized routers.

        Args:
            backbone: a causal language model; it must not be used on its own afterwards.
            config: with `backbone_config` equal to the backbone's.
            seed: of the routers' random initialization (normal, the backbone's `initializer_range`).
        """
        with torch.device("meta"):
            model = cls(config)
        weights = {_PREFIX + name: value for name, value in backbone.state_dict(keep_vars=True).items()}
        like = next(backbone.parameters())
        for name, value in initial_routers(model, seed).items():
            weights[name] = nn.Parameter(value.to(dtype=like.dtype, device=like.device))
        model.load_state_dict(weights, assign=True)
        for name, buffer in backbone.named_buffers():
            owner, _, leaf = name.rpartition(".")
            setattr(model.backbone.get_submodule(owner), leaf, buffer)
        model.tie_weights()
        model.generation_config = backbone.generation_config
        return model.eval()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        memory: Step | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """The backbone's forward, with memory. Not covered: packed sequences that only `position_ids` separate.

        Args:
            attention_mask: `[B, S]`, 0 on padding; only without `memory`, which describes padding itself.
            memory: what MSA layers record (`EncodeStep`) or attend to (`QueryStep`).

        Raises:
            ValueError: a mask beside `memory` or with four dimensions, or a cache of fixed size.
        """
        if attention_mask is not None:
            if memory is not None or attention_mask.dim() != 2:
                raise ValueError("attention_mask must be [B, S], and is described by `memory` where that is given")
            if not bool(attention_mask.all()):
                memory = QueryStep(valid_BS=attention_mask.bool())
        if isinstance(past_key_values, StaticCache):
            raise ValueError("memory attention reads caches that grow; use DynamicCache instead of a static cache")
        with reading_packed(memory):
            return self.backbone(
                input_ids=input_ids, position_ids=position_ids, past_key_values=past_key_values, memory=memory, **kwargs
            )

    def get_output_embeddings(self) -> nn.Module:
        return self.backbone.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.backbone.set_output_embeddings(new_embeddings)

    def set_attn_implementation(self, attn_implementation: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Refused: with any other attention function the memory would silently be left out."""
        if attn_implementation != ATTENTION_NAME:
            raise ValueError(f"an MSA model always uses the {ATTENTION_NAME!r} attention, not {attn_implementation!r}")

    def encode(self, documents: Sequence[Sequence[int]]) -> EncodedDocuments:
        """Stage 1 (paper 3.4.1): run documents through every layer, each alone, and keep their pooled latents.

        Args:
            documents: token ids of each document in its template; one right-padded batch, so best of like length.

        Returns:
            Latents of the documents' chunks, in order. Gradients flow where they are enabled.
        """
        return self._gather(self.record(documents), [len(ids) for ids in documents])

    def record(self, documents: Sequence[Sequence[int]]) -> EncodeStep:
        """The forward of `encode`: what every MSA layer pooled, padded to the longest document."""
        lengths = [len(ids) for ids in documents]
        if not lengths or min(lengths) == 0:
            raise ValueError("encode needs at least one document, and no empty one")
        lengths_B = to_device(torch.tensor(lengths), self.device)
        step = EncodeStep(lengths_B, self.config.chunk_size, last_layer=self.config.layers[-1])
        self.run_documents(documents, step)
        return step

    def run_documents(
        self, documents: Sequence[Sequence[int]], step: DocumentStep, place_BT: torch.Tensor | None = None
    ) -> None:
        """One forward over documents, right-padded, for what the step records of them.

        Args:
            place_BT: the tokens' positions. Default: from 0.
        """
        ids_BT = torch.zeros(len(documents), max(map(len, documents)), dtype=torch.long)
        for row, ids in zip(ids_BT, documents, strict=True):
            row[: len(ids)] = torch.as_tensor(ids)
        places = {} if place_BT is None else {"position_ids": to_device(place_BT, self.device)}
        # The decoder without its language-model head: nothing but the recorded rows is wanted.
        decoder = cast(PreTrainedModel, self.backbone.base_model)
        with contextlib.suppress(AllRecorded):
            decoder(input_ids=to_device(ids_BT, self.device), memory=step, use_cache=False, **places)

    def _gather(self, step: EncodeStep, lengths: Sequence[int]) -> EncodedDocuments:
        """Drop the padding rows of every layer's pooled values and stack the layers. A device is not waited for."""
        router_keys, contents = [], []
        chunks_N = tuple(num_chunks(length, step.chunk_size) for length in lengths)
        rows = torch.arange(max(chunks_N)) < torch.tensor(chunks_N)[:, None]
        rows_C = to_device(rows.flatten().nonzero()[:, 0], step.lengths_B.device)
        for layer in self.config.layers:
            pooled = step.recorded[layer]
            assert pooled.router_key_BCGD is not None, "an MSA layer did not see this step"
            assert pooled.key_BCGD is not None and pooled.value_BCGD is not None, "an MSA layer recorded no K and V"
            key_CGD, k_CGD, v_CGD = (
                x.flatten(0, 1).index_select(0, rows_C)
                for x in (pooled.router_key_BCGD, pooled.key_BCGD, pooled.value_BCGD)
            )
            router_keys.append(fold_keys(key_CGD, self.config.similarity))
            contents.append(torch.stack([k_CGD, v_CGD], dim=1))
        return EncodedDocuments(
            router_keys_LCW=torch.stack(router_keys),
            content_LC2GD=torch.stack(contents),
            num_chunks=chunks_N,
        )

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:  # type: ignore[override]
        """Write a checkpoint folder: `config.json` (with fresh fingerprints), safetensors by the backbone's names.

        Raises:
            ValueError: the model has LoRA, which a checkpoint has no place for.
        """
        if any(name.endswith(".query_weight") for name, _ in self.named_buffers()):
            raise ValueError("a checkpoint has one weight for both sides: LoRA of one side is saved with save_adapter")
        if any(is_lora(name) for name, _ in self.named_parameters()):
            raise ValueError("a checkpoint holds no LoRA: save it with save_adapter, or merge it first (merge_lora)")
        if kwargs.get("state_dict") is None:
            tied = set(self.all_tied_weights_keys)
            kwargs["state_dict"] = {
                name.removeprefix(_PREFIX): value for name, value in self.state_dict().items() if name not in tied
            }
        set_fingerprints(self.config, kwargs["state_dict"])
        super().save_pretrained(save_directory, **kwargs)

    def named_backbone_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The backbone's parameters under its own names, routers and LoRA left out."""
        for name, parameter in self.named_parameters():
            if not is_router(name) and not is_lora(name):
                yield name.removeprefix(_PREFIX), parameter

    def encoder_fingerprint(self) -> str:
        """sha256 of everything that shapes a document's latents: that of the stored files, where the model has any.

        A model made in memory, or with LoRA that is not merged, has the fingerprint that saving and loading would give.
        A change of the query side (router query projections, an adapter's weights for questions) keeps the
        fingerprint, and so a bank, valid.
        """
        stored = self.config.encoder_fingerprint
        added = {name: weight for name, weight in self.named_parameters() if is_router(name) or is_lora(name)}
        if stored is not None and not any(map(is_lora, added)):
            return stored
        backbone = self.config.backbone_fingerprint or fingerprint(self.named_backbone_weights())
        return self.config.encoder_fingerprint_of(backbone, self.document_fingerprint(added))

    def document_fingerprint(self, weights: Mapping[str, torch.Tensor]) -> str:
        """sha256 of weights that stand beside or in the place of the backbone's, those of the query side left out.

        Args:
            weights: by the names of `named_parameters`; the model has the modules that LoRA among them belongs to.
        """
        kept = {name: weight for name, weight in weights.items() if not self.is_query_side(name)}
        owners = {name.rpartition(".")[0] for name in kept if is_lora(name)}
        scales = {name: float(cast(float, self.get_submodule(name).lora_scale)) for name in owners}
        return fingerprint(kept.items(), settings=json.dumps(scales, sort_keys=True))

    def weights_fingerprint(self, router_keys: bool = True, dtype: torch.dtype | None = None) -> str:
        """sha256 of the document side as this process holds it: weights in their number format, and settings.

        Args:
            router_keys: False: leave out the router key projections, which only make keys of pooled hidden states.
            dtype: as if the weights were rounded to this number format; None: as they are.
        """
        config = self.config
        spec = config.template_spec
        # What of the backbone's config is not its default decides with the weights what is computed (RoPE, windows).
        computed = {key: value for key, value in config.text_config.to_diff_dict().items() if key not in _INCIDENTAL}
        settings = (config.chunk_size, config.layers, config.similarity, spec.document_prefix, spec.document_suffix)
        settings = json.dumps([settings, computed], sort_keys=True, default=str)
        weights = (
            (name, parameter.detach().to(dtype or parameter.dtype))
            for name, parameter in self.named_parameters()
            if not self.is_query_side(name) and (router_keys or not is_router(name))
        )
        return fingerprint(weights, settings=settings)

    def is_query_side(self, name: str) -> bool:
        """Whether a parameter has no part in encoding documents."""
        if name.endswith("router_q_proj.weight") or name == f"{_PREFIX}lm_head.weight":
            return True
        return is_lora(name) and getattr(self.get_submodule(name.rpartition(".")[0]), "lora_sides", ()) == ("query",)


def initial_routers(model: MSAForCausalLM, seed: int) -> dict[str, torch.Tensor]:
    """What the router parameters of a model begin as, by name: normal, the backbone's `initializer_range`; float32."""
    std = getattr(model.config.text_config, "initializer_range", 0.02)
    generator = torch.Generator().manual_seed(seed)
    routers = ((name, parameter.shape) for name, parameter in model.named_parameters() if is_router(name))
    return {name: torch.empty(shape).normal_(0.0, std, generator=generator) for name, shape in routers}


def is_router(parameter_name: str) -> bool:
    """Whether a parameter is one that MSA adds to the backbone: a router projection."""
    return "router_q_proj" in parameter_name or "router_k_proj" in parameter_name


def is_lora(parameter_name: str) -> bool:
    """Whether a parameter is part of a low-rank change (`memspan.model.lora`)."""
    return parameter_name.endswith((".lora_a", ".lora_b"))


def set_fingerprints(config: MSAConfig, weights: Mapping[str, torch.Tensor]) -> None:
    """Put the fingerprints of a checkpoint's weights, given by their stored names, into its config."""
    config.backbone_fingerprint = fingerprint((n, weight) for n, weight in weights.items() if not is_router(n))
    config.document_fingerprint = _router_fingerprint(weights)
    config.weights_sample = sample(weights.items())


def check_fingerprints(config: MSAConfig, folder: Path, *, verify: bool = False) -> None:
    """See that the fingerprints in a checkpoint's config are those of its files, by a sample of the weights.

    Where the files were changed since, all of them are hashed, and a warning says so. Of a checkpoint from before there
    were samples its backbone's fingerprint counts as it is stored, and its few router key projections are hashed.

    Args:
        verify: hash all weights in any case.

    Raises:
        CheckpointError: they differ from the saved weights (only with `verify`).
    """
    weights = mapped_weights(folder)
    if verify:
        stored = config.backbone_fingerprint, config.document_fingerprint
        set_fingerprints(config, weights)
        found = config.backbone_fingerprint, config.document_fingerprint
        if any(one not in (None, other) for one, other in zip(stored, found, strict=True)):
            raise CheckpointError(f"the weights in {folder} differ from the saved ones; run memspan convert again")
    elif config.weights_sample not in (None, sample(weights.items())) or config.backbone_fingerprint is None:
        set_fingerprints(config, weights)
        _log.warning(
            "the weights in %s are not those that its config.json was written with: all were hashed, as they will be "
            "at every load. If the change was meant, save the model anew (save_pretrained); else convert it again",
            folder,
        )
    elif config.document_fingerprint is None:
        config.document_fingerprint = _router_fingerprint(weights)


def _router_fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """`MSAForCausalLM.document_fingerprint` of a checkpoint's weights, by their stored names."""
    keys = ((f"{_PREFIX}{name}", weight) for name, weight in weights.items() if "router_k_proj" in name)
    return fingerprint(keys, settings="{}")


def attention_modules(backbone: nn.Module, layers: Iterable[int]) -> list[nn.Module]:
    """The `self_attn` modules of the given layers, in order.

    Raises:
        UnsupportedBackbone: a layer's attention cannot be found, or several claim its index.
    """
    by_layer: dict[int, list[nn.Module]] = {}
    for name, module in backbone.named_modules():
        layer_idx = getattr(module, "layer_idx", None)
        if isinstance(layer_idx, int) and name.rpartition(".")[2] in ("self_attn", "attention", "attn"):
            by_layer.setdefault(layer_idx, []).append(module)
    found = []
    for layer in layers:
        candidates = by_layer.get(layer, [])
        if len(candidates) != 1:
            reason = "has no softmax attention with a layer_idx" if not candidates else "has several attention modules"
            raise UnsupportedBackbone(f"layer {layer} of {type(backbone).__name__} {reason}; memory cannot be added")
        found.append(candidates[0])
    return found


def decoder_layers(backbone: nn.Module, layers: Iterable[int]) -> dict[str, nn.Module]:
    """The decoder layers of the given indices by name, in order: what holds their `attention_modules`."""
    names = {id(module): name for name, module in backbone.named_modules()}
    parents = [names[id(attention)].rpartition(".")[0] for attention in attention_modules(backbone, layers)]
    return {parent: backbone.get_submodule(parent) for parent in parents}


def routed_modules(model: MSAForCausalLM) -> list[RoutedAttention]:
    """The MSA layers' attention modules, in layer order."""
    return cast(list[RoutedAttention], attention_modules(model.backbone, model.config.layers))


AutoConfig.register(MSAConfig.model_type, MSAConfig)
AutoModelForCausalLM.register(MSAConfig, MSAForCausalLM)
