"""The whole path on the real default backbone: convert -> add -> ask, through the command line."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from memspan import load
from memspan.cli import app

NOTES = Path(__file__).parents[1] / "examples" / "notes"

pytestmark = pytest.mark.real


def test_convert_add_ask(real_checkpoint: Path, tmp_path: Path) -> None:
    runner, bank = CliRunner(), str(tmp_path / "bank")
    added = runner.invoke(app, ["add", bank, str(NOTES / "people"), "--model", str(real_checkpoint), "--json"])
    assert added.exit_code == 0, added.output
    assert json.loads(added.stdout)["added"] == len(list((NOTES / "people").glob("*.md")))
    question = "What is the name of Owen Pritchard's sheepdog?"
    asked = runner.invoke(app, ["ask", bank, question, "--model", str(real_checkpoint), "--json"])
    assert asked.exit_code == 0, asked.output
    answer = json.loads(asked.stdout)
    assert answer["evidence"][0]["external_id"] == "people/owen-pritchard.md"
    assert "Mabli" in answer["text"]


def test_a_converted_model_without_memory_is_the_backbone(real_checkpoint: Path) -> None:
    loaded = load(real_checkpoint, dtype="float32")
    config = loaded.model.config.backbone_config
    backbone = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager").eval()
    missing, unexpected = backbone.load_state_dict(load_file(real_checkpoint / "model.safetensors"), strict=False)
    assert missing == ["lm_head.weight"] and all("router_" in name for name in unexpected)
    ids = torch.tensor([loaded.template.context("Who built the first hive scale?").ids])
    with torch.no_grad():
        expected = backbone(ids, attention_mask=torch.ones_like(ids)).logits
        torch.testing.assert_close(loaded.model(ids).logits, expected, atol=1e-3, rtol=1e-3)
