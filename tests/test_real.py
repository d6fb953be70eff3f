"""The whole path on the real default backbone: convert -> add -> ask, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from memspan import load
from memspan.cli import app
from memspan.model.backbones import DEFAULT_SOURCE, load_backbone

NOTES = Path(__file__).parents[1] / "examples" / "notes"

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "smollm2"
    result = CliRunner().invoke(app, ["convert", DEFAULT_SOURCE, "--out", str(folder), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["msa_layers"] == list(range(15, 30))
    return folder


def test_convert_add_ask(checkpoint: Path, tmp_path: Path) -> None:
    runner, bank = CliRunner(), str(tmp_path / "bank")
    added = runner.invoke(app, ["add", bank, str(NOTES / "people"), "--model", str(checkpoint), "--json"])
    assert added.exit_code == 0, added.output
    assert json.loads(added.stdout)["added"] == len(list((NOTES / "people").glob("*.md")))
    question = "What is the name of Owen Pritchard's sheepdog?"
    asked = runner.invoke(app, ["ask", bank, question, "--model", str(checkpoint), "--json"])
    assert asked.exit_code == 0, asked.output
    answer = json.loads(asked.stdout)
    assert answer["evidence"][0]["external_id"] == "owen-pritchard.md"
    assert "Mabli" in answer["text"]


def test_a_converted_model_without_memory_is_the_backbone(checkpoint: Path) -> None:
    backbone, tokenizer = load_backbone(DEFAULT_SOURCE, torch.bfloat16)
    model = load(checkpoint, dtype="float32").model
    ids = torch.tensor([tokenizer("The hive scale was invented in a small workshop near the river.")["input_ids"]])
    with torch.no_grad():
        expected = backbone.float().eval()(ids, attention_mask=torch.ones_like(ids)).logits
        torch.testing.assert_close(model(ids).logits, expected, atol=1e-3, rtol=1e-3)
