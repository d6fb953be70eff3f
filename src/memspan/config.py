"""Configuration of an MSA model: the backbone's config plus what memory attention adds. Checked when built.

`MSAConfig` is saved with the checkpoint and is the only place where chunk size, layers, k and template live; training,
encoding and serving read the same object.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from transformers import AutoConfig, PretrainedConfig
from transformers.configuration_utils import SubConfigSpec

from memspan.errors import CheckpointError
from memspan.ops.similarity import SIMILARITIES


@dataclass(frozen=True, slots=True)
class TemplateSpec:
    """Every literal the model reads or emits, as text; `memspan.text.template` turns it into tokens.

    Attributes:
        name: of the preset, for messages.
        document_prefix, document_suffix: around a document when it is encoded; `{id}` is its permanent id.
        context_prefix: opens the active context. It sees no memory, is seen by everything, and does not route.
        context_suffix: closes the question and opens the answer.
        passage: how a document's original text is put before the question; fields `{id}`, `{date}` and `{text}`.
        grounded_question: the question with original text before it; fields `{passages}` and `{question}`.
        plain_question: the question alone; field `{question}`.
        stops: markers that end an answer, beside the tokenizer's end of sequence.
        round_end: closes the ids a retrieval round writes, and the texts put in for them (paper 3.5); empty: no rounds.
        retrieval_end: written in the place of ids once enough has been found; empty: no rounds.
        final_question: put in behind `retrieval_end`, before the answer; field `{question}`; may be empty.
        summary_request: asks for a summary of texts; fields `{passages}` and `{about}` (" about SOMETHING", or empty).
    """

    name: str
    document_prefix: str
    document_suffix: str
    context_prefix: str
    context_suffix: str
    passage: str
    grounded_question: str
    plain_question: str
    stops: tuple[str, ...]
    round_end: str = ""
    retrieval_end: str = ""
    final_question: str = ""
    summary_request: str = "Notes:\n{passages}\nList the key facts of these notes{about}, one per line."

    def __post_init__(self) -> None:
        object.__setattr__(self, "stops", tuple(self.stops))
        fields = {
            "document_prefix": ("{id}",),
            "passage": ("{text}",),
            "grounded_question": ("{passages}", "{question}"),
            "plain_question": ("{question}",),
            "summary_request": ("{passages}", "{about}"),
        }
        for name, needed in fields.items():
            missing = [place for place in needed if place not in getattr(self, name)]
            if missing:
                raise ValueError(f"template {self.name!r}: {name} must contain {' and '.join(missing)}")


_GROUNDED = "{passages}\nUsing only the notes above, answer with a short phrase.\nQuestion: {question}"

_RELEASED_REQUEST = (
    "\nPlease answer the question based on the above historical document information\n\n{question}\n"
    "Please return all documents related to the question\n"
)

TEMPLATES: dict[str, TemplateSpec] = {
    spec.name: spec
    for spec in (
        TemplateSpec(
            name="chatml",
            document_prefix="<|im_start|>[{id}]. ",
            document_suffix="[{id}]<|im_end|>",
            context_prefix="<|im_start|>user\n",
            context_suffix="<|im_end|>\n<|im_start|>assistant\n",
            passage="[{id}]. ({date}) {text}\n",
            grounded_question=_GROUNDED,
            plain_question="{question}",
            stops=("<|im_end|>",),
        ),
        # The layout of the released MSA-4B (Qwen3): documents as above; the question stands in a fixed request, all of
        # which routes, and the model's turn opens without a role, as its documents do.
        TemplateSpec(
            name="msa",
            document_prefix="<|im_start|>[{id}]. ",
            document_suffix="[{id}]<|im_end|>",
            context_prefix="<|im_start|>user\n",
            context_suffix="<|im_end|>\n<|im_start|>",
            passage="[{id}]. {text}\n",
            grounded_question="{passages}{question}",
            plain_question=_RELEASED_REQUEST,
            stops=("<|im_end|>", "<|endoftext|>"),
            round_end="<|object_ref_end|>",
            retrieval_end="<End-of-Retrieve>",
            final_question="<|im_start|>The user's question is: {question}\n<|object_ref_end|>",
        ),
        # For base models without a chat format.
        TemplateSpec(
            name="plain",
            document_prefix="[{id}]. ",
            document_suffix="[{id}]\n",
            context_prefix="Question and answer.\n",
            context_suffix="\nAnswer:",
            passage="[{id}]. ({date}) {text}\n",
            grounded_question="{passages}\nQuestion: {question}",
            plain_question="Question: {question}",
            stops=("\n\n", "\nQuestion:"),
        ),
    )
}

# Fields of a decoder's config that decide, with its weights, what it computes of a document. They count in the encoder
# fingerprint by the value that is in force, given or not.
_SHAPING = """
    model_type hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
    hidden_act hidden_activation rms_norm_eps layer_norm_eps norm_eps attention_bias mlp_bias
    max_position_embeddings original_max_position_embeddings rope_parameters rope_theta rope_scaling
    partial_rotary_factor no_rope_layers layer_types sliding_window use_sliding_window max_window_layers
    query_pre_attn_scalar attn_logit_softcapping use_bidirectional_attention
    embedding_multiplier residual_multiplier attention_multiplier
    num_experts_per_tok norm_topk_prob decoder_sparse_step mlp_only_layers
"""
# Fields that do not. One that is in neither list counts where it is not what its class has by default: another encoder
# that is taken for the same is worse than a bank that is refused.
_INCIDENTAL = """
    architectures dtype torch_dtype transformers_version name_or_path auto_map id2label label2id problem_type
    use_cache return_dict output_attentions output_hidden_states chunk_size_feed_forward is_encoder_decoder
    vocab_size tie_word_embeddings initializer_range pretraining_tp
    bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id
    attention_dropout hidden_dropout resid_pdrop embd_pdrop attn_pdrop dropout
    logits_scaling logit_scale final_logit_softcapping output_router_logits router_aux_loss_coef router_jitter_noise
"""
# Of encoder fingerprints. Former ones, the sha256 of the weights as they were loaded, have no mark (`model/former.py`).
FINGERPRINT_MARK = "v2-"


def refuse_score_bias(what: str, has_one: bool) -> None:
    """
    Raises:
        CheckpointError: a checkpoint or an adapter was trained with a score bias, which its layers need.
    """
    if has_one:
        raise CheckpointError(
            f"{what} was trained with a score bias, and memspan 0.1 is the last version that reads one; use that "
            "version, or train again without model.score_bias"
        )


class MSAConfig(PretrainedConfig):
    """Configuration of an `MSAForCausalLM`.

    Attributes:
        backbone_config: the decoder's own config, of any supported family.
        msa_layers: indices of the layers that route and attend to memory, ascending. Default: the latter half.
        chunk_size: P, tokens mean-pooled into one row (paper: 64).
        top_k_docs: k, documents selected per MSA layer, at training time and by default at serving time (paper: 16).
        position_offset: the active context starts this far after the template prefix; a constant of the model, the
            same for every k. Default: `top_k_docs`.
        similarity: of `memspan.ops.similarity`: "cosine" (paper), "dot" (as some released checkpoints serve) ...
        template: literals of documents and prompts.
        max_document_tokens: longer texts are split into several documents.
        router_trained: False while the router projections are random; then routing means nothing yet.
        backbone_fingerprint, document_fingerprint: sha256 of the backbone's weights, and of what shapes documents
            beside them: the router key projections, or what an adapter changes (`memspan.model.fingerprint`). Written
            by `save_pretrained`; None: nothing is stored yet.
        weights_sample: by which a changed file is noticed.
    """

    model_type = "memspan"
    sub_configs_defaults: ClassVar = {"backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")}

    backbone_config: dict | PretrainedConfig | None = None
    msa_layers: list[int] | None = None
    chunk_size: int = 64
    top_k_docs: int = 16
    position_offset: int | None = None
    similarity: str = "cosine"
    template: dict[str, Any] | None = None
    max_document_tokens: int = 512
    router_trained: bool = False
    backbone_fingerprint: str | None = None
    document_fingerprint: str | None = None
    weights_sample: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("encoder_fingerprint", None)  # stored by former versions, as the next
        refuse_score_bias("the checkpoint", kwargs.pop("score_bias", None) is not None)
        # Its own copy: building the model sets the attention implementation in it.
        self.backbone_config = copy.deepcopy(self.backbone_config)
        super().__post_init__(**kwargs)
        num_layers = self.text_config.num_hidden_layers
        if self.msa_layers is None:
            self.msa_layers = list(range(num_layers // 2, num_layers))
        if self.position_offset is None:
            self.position_offset = self.top_k_docs
        if self.template is None:
            self.template = dataclasses.asdict(TEMPLATES["chatml"])
        self.template["stops"] = list(self.template["stops"])
        # `generate` and weight tying of transformers read these from the top-level config.
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        self.vocab_size = self.text_config.vocab_size
        self._check(num_layers)

    def _check(self, num_layers: int) -> None:
        layers = cast(list[int], self.msa_layers)
        if not layers or layers != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= num_layers:
            raise ValueError(
                f"msa_layers must be ascending, distinct layer indices in 0..{num_layers - 1}, not {layers}"
            )
        for name in ("chunk_size", "top_k_docs", "max_document_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.offset < 0:
            raise ValueError(f"position_offset must not be negative, not {self.position_offset}")
        SIMILARITIES[self.similarity]  # an unknown one fails here
        self.template_spec  # noqa: B018 - builds it, so that a wrong template fails here

    @property
    def text_config(self) -> PretrainedConfig:
        """The decoder's config (the text part, where the backbone's config has several parts)."""
        return cast(PretrainedConfig, self.backbone_config).get_text_config(decoder=True)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PretrainedConfig:
        """The decoder's config: caches and `generate` are sized by it, not by the wrapper's."""
        return self.text_config

    @property
    def template_spec(self) -> TemplateSpec:
        return TemplateSpec(**cast(dict[str, Any], self.template))

    @property
    def layers(self) -> tuple[int, ...]:
        """`msa_layers` as an immutable tuple."""
        return tuple(cast(list[int], self.msa_layers))

    @property
    def offset(self) -> int:
        """`position_offset`, resolved."""
        return cast(int, self.position_offset)

    @property
    def encoder_fingerprint(self) -> str | None:
        """Of what is stored; None where nothing is. See `encoder_fingerprint_of`."""
        if self.backbone_fingerprint is None or self.document_fingerprint is None:
            return None
        return self.encoder_fingerprint_of(self.backbone_fingerprint, self.document_fingerprint)

    def encoder_fingerprint_of(self, backbone: str, document: str) -> str:
        """sha256 over everything that shapes a document's latents: banks record it, and refuse another encoder.

        Args:
            backbone, document: the two fingerprints of weights.
        """
        spec, text = self.template_spec, self.text_config
        defaults = type(text)().to_dict()
        shaping, incidental = set(_SHAPING.split()), set(_INCIDENTAL.split())

        def counts(name: str, value: Any) -> bool:
            return name in shaping or not (name in incidental or name[0] == "_" or value == defaults.get(name))

        computed = {n: value for n, value in text.to_dict().items() if value is not None and counts(n, value)}
        template = spec.document_prefix, spec.document_suffix
        settings = [backbone, document, self.chunk_size, self.layers, self.similarity, template, computed]
        # 10000 and 10000.0 are one setting.
        settings = json.loads(json.dumps(settings, default=str), parse_int=float)
        return FINGERPRINT_MARK + hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    @property
    def num_heads(self) -> int:
        """H, query heads of the backbone."""
        return self.text_config.num_attention_heads

    @property
    def num_kv_heads(self) -> int:
        """G, key-value heads of the backbone."""
        return getattr(self.text_config, "num_key_value_heads", None) or self.num_heads

    @property
    def head_dim(self) -> int:
        """D, size of a head."""
        return getattr(self.text_config, "head_dim", None) or self.text_config.hidden_size // self.num_heads
