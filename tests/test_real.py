"""The whole path on the real default backbone: convert -> add -> ask, through the command line."""

from __future__ import annotations

import copy
import json
import runpy
from pathlib import Path

import pytest
import torch
from helpers import counted_sha256
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from memspan import Document, Memory, load
from memspan.cli import app
from memspan.text.corpus import read_paths

DEFAULT_FINGERPRINT = "v2-a0898766df45ebfccbc72df0d8c8480716f411ab20e4c4ee718a6d0b709b7543"
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


@pytest.mark.slow
def test_a_decision_that_was_reversed_is_answered_by_the_later_document(real_checkpoint: Path, tmp_path: Path) -> None:
    reversals = (
        ("How many years of warranty does Brindlecomb give?", "two", "five"),
        ("What kind of battery does the Amber scale have?", "lithium-ion", "phosphate"),
    )
    with Memory.open(tmp_path / "bank", real_checkpoint, create=True) as memory:
        memory.add(found for found in read_paths([NOTES]) if isinstance(found, Document))
        for question, before, now in reversals:
            then, today = (memory.ask(question, max_documents=2, as_of=day) for day in ("2024-06-30", None))
            assert before in then.text and now not in then.text
            assert all(item.date <= "2024-06-30" for item in then.evidence)
            assert now in today.text
            assert any(item.date > "2024-06-30" for item in today.evidence)


@pytest.mark.slow
def test_an_assistant_keeps_its_answer_until_the_fact_changes(
    real_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example as it is; it finds the checkpoint as the default one."""
    monkeypatch.setattr("sys.argv", ["assistant.py"])
    runpy.run_path(str(NOTES.parent / "assistant.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    days, (as_of, of_bob) = lines[:-2], lines[-2:]
    for line in days:
        assert ("Lisbon" in line) == (line[:10] >= "2025-05-30"), line
        assert ("Ghent" in line) == (line[:10] < "2025-05-30"), line
    assert "Ghent" in as_of and "Lisbon" not in as_of
    assert "Oslo" in of_bob and "Ghent" not in of_bob and "Lisbon" not in of_bob


def test_the_default_models_fingerprint_is_that_of_its_files_everywhere(real_checkpoint: Path) -> None:
    """On every machine, in every number format: a change of it makes all banks of the default model former ones."""
    threads = torch.get_num_threads()
    try:
        for dtype in ("float32", "bfloat16"):
            for number in (1, 2):
                torch.set_num_threads(number)
                with counted_sha256() as hashed:
                    model = load(dtype=dtype).model
                assert model.encoder_fingerprint() == DEFAULT_FINGERPRINT
                assert hashed[0] < 16 * 2**20, "of 290 MB of weights"
    finally:
        torch.set_num_threads(threads)
    verified = load(dtype="bfloat16", verify=True).model
    assert verified.encoder_fingerprint() == DEFAULT_FINGERPRINT


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
