"""The released code's numbers, beside the converted checkpoint that must reproduce them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from memspan.model.modeling import MSAForCausalLM
from memspan.model.released import convert_released, released_config
from memspan.text.template import Context
from memspan.types import Span

HERE = Path(__file__).parent
LAYERS = (2, 3)
PREFIX = 3


@dataclass(frozen=True)
class Parity:
    """One `aux_loss_method`: the model converted under it, and what the released code computed."""

    method: str
    model: MSAForCausalLM
    tensors: dict[str, torch.Tensor]
    facts: dict[str, Any]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[f"{self.method}/{name}"]

    @property
    def lm_head_VF(self) -> torch.Tensor:
        """The head as it lies in the source, not as it was converted."""
        return load_file(HERE / "checkpoint_P4" / "model.safetensors")["lm_head.weight"]

    def contexts(self, batch: str) -> list[Context]:
        """The questions of `s2/{batch}` as we pack them: the template prefix in front, no padding."""
        rows = zip(*(self[f"s2/{batch}/{name}"] for name in ("input_ids", "attention_mask", "doc_ids")), strict=True)
        return [
            self.context(ids[mask == 1].tolist(), int(((docs == 0) & (mask == 1)).sum())) for ids, mask, docs in rows
        ]

    def context(self, ids: Sequence[int], num_routing: int) -> Context:
        head = self.facts["template_head"]
        return Context((*head, *ids), Span(len(head), len(head) + num_routing))


def convert_under(method: str, folder: Path, similarity: str | None = None) -> MSAForCausalLM:
    """The checkpoint with another `aux_loss_method`, converted and loaded in float32."""
    source, out = folder / "source", folder / "out"
    shutil.copytree(HERE / "checkpoint_P4", source)
    out.mkdir()
    values = json.loads((source / "config.json").read_text())
    values["msa_config"]["aux_loss_method"] = method
    (source / "config.json").write_text(json.dumps(values))
    convert_released(source, out, released_config(source, similarity=similarity), torch.float32)
    return MSAForCausalLM.from_pretrained(out, dtype=torch.float32).eval()


def parity(method: str, model: MSAForCausalLM) -> Parity:
    facts = json.loads((HERE / "fixture_P4.json").read_text())
    return Parity(method, model, load_file(HERE / "fixture_P4.safetensors"), facts)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-4)
