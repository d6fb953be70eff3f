"""What a document's keys and values are worth when they are compressed: answers from them, and from its text.

    python benchmarks/compression.py DATA/dev/squad_dev.jsonl.gz DATA/dev/nq_dev.jsonl.gz [--questions 200]
        [--out FILE.jsonl] [--json FILE]

The right document stands before the question, and every layer keeps fewer rows of it than it has tokens. Nothing is
trained: the model is the default backbone with its adapter, which has learned to answer from texts. Forms, each with
the number of tokens that a row stands for, and the layers that see the rows:

    text        all rows
    none        no row
    chosen/R    the keys and values of some tokens, those that the model looks at most when it repeats the text
                (KVzip, arXiv 2505.23416); heads share a layer's rows out among them
    matched/R   the keys of some tokens, with a bias for each and values fitted by least squares, so that a repetition
                of the text attends to them as to all (Attention Matching, arXiv 2602.16284)
    mean/R      means of R tokens, of the keys before they are rotated

The question is not known when rows are chosen or fitted. With --out, answers are kept, and the command goes on where it
was stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from plots import add_json, write_json
from torch import Tensor
from transformers import AttentionInterface, DynamicCache

from memspan import load
from memspan.eval.metrics import bootstrap, f1, substring_match
from memspan.model.convert import LoadedModel
from memspan.text.questions import UNDATED, Question, read_questions
from memspan.text.template import Passage, encoded_text

ATTENTION = "compressed"
REPEAT = "\nRepeat the notes above word for word.\n"
RATES = (2, 4, 8)
SOME = (range(6, 20), range(20, 30), range(12, 30), range(6, 30))
"""Layers that see the text, of 30: those in which the adapter that ships has learned to read, and others."""
_NO_ROW = float("-inf")


@dataclass(frozen=True, slots=True)
class Rows:
    """What one layer keeps of a document: keys (rotated) and values `[G, M, D]`, biases `[G, M]`; -inf: no row."""

    keys: Tensor
    values: Tensor
    bias: Tensor

    @classmethod
    def plain(cls, keys_GMD: Tensor, values_GMD: Tensor) -> Rows:
        return cls(keys_GMD, values_GMD, keys_GMD.new_zeros(keys_GMD.shape[:2]))


class Seen:
    """What the registered attention function reads and leaves; one model at a time."""

    recorded: dict[int, tuple[Tensor, Tensor, Tensor]] | None = None
    """By layer the queries, keys and values of the one row that is run, float32."""
    rows: Mapping[int, Rows] = {}
    """By layer what a batch attends to before its own tokens, `[B, G, M, ...]`."""


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Causal attention to the rows of a document and to the tokens of the batch."""
    B, H, T, D = query.shape
    if Seen.recorded is not None:
        Seen.recorded[module.layer_idx] = (query[0].float(), key[0].float(), value[0].float())
    G, S = key.shape[1:3]
    query = query.reshape(B, G, H // G * T, D)
    causal_TS = torch.ones(T, S, dtype=torch.bool).tril(S - T).repeat(H // G, 1)
    scores = (query @ key.transpose(2, 3)).float().mul(scaling).masked_fill(~causal_TS, _NO_ROW)
    if (rows := Seen.rows.get(module.layer_idx)) is not None:
        before = (query @ rows.keys.to(query.dtype).transpose(2, 3)).float().mul(scaling) + rows.bias[:, :, None]
        scores, value = torch.cat([before, scores], -1), torch.cat([rows.values.to(value.dtype), value], 2)
    out = scores.softmax(-1).to(value.dtype) @ value
    return out.reshape(B, H, T, D).transpose(1, 2), None


AttentionInterface.register(ATTENTION, attention)


@dataclass(frozen=True, slots=True)
class Looked:
    """A layer's states of a document: its keys, values, and the queries of a repetition that look at it.

    Attributes:
        keys, values: `[G, S, D]`; unrotated: keys before RoPE.
        places: of the tokens, `[S]`, by which keys are rotated.
        asked: `[G, Q, D]`, all heads of a group and tokens of the repetition.
        scaling: of the products.
    """

    keys: Tensor
    values: Tensor
    unrotated: Tensor
    places: Tensor
    asked: Tensor
    scaling: float

    @property
    def logits(self) -> Tensor:
        """`[G, Q, S]`."""
        return (self.asked @ self.keys.transpose(1, 2)) * self.scaling


def whole(looked: Looked, rate: int) -> Rows:
    """All tokens."""
    return Rows.plain(looked.keys, looked.values)


def chosen(looked: Looked, rate: int) -> Rows:
    """The tokens most looked at, over all heads of the layer; a head's rest is masked."""
    G, S, _ = looked.keys.shape
    most_GS = looked.logits.softmax(-1).amax(1)
    kept = most_GS.flatten().topk(max(G, G * S // rate)).indices
    bias_GS = torch.full((G * S,), _NO_ROW).index_fill_(0, kept, 0.0).view(G, S)
    return Rows(looked.keys, looked.values, bias_GS)


def matched(looked: Looked, rate: int) -> Rows:
    """Some keys, biases that keep the mass of attention, and values that keep its result."""
    logits_GQS = looked.logits
    shares_GQS = logits_GQS.softmax(-1)
    kept_GM = shares_GQS.square().mean(1).topk(max(1, logits_GQS.shape[2] // rate)).indices.sort().values
    mass_GQS = (logits_GQS - logits_GQS.amax(-1, keepdim=True)).exp()
    kept_GQM = mass_GQS.gather(2, kept_GM[:, None].expand(-1, mass_GQS.shape[1], -1))
    weight_GM = nonnegative(kept_GQM, mass_GQS.sum(-1))
    part_GQM = kept_GQM * weight_GM[:, None]
    part_GQM = part_GQM / part_GQM.sum(-1, keepdim=True)
    values_GMD = least_squares(part_GQM, shares_GQS @ looked.values)
    keys_GMD = looked.keys.gather(1, kept_GM[..., None].expand(-1, -1, looked.keys.shape[2]))
    return Rows(keys_GMD, values_GMD, weight_GM.log())


def nonnegative(matrix_GQM: Tensor, wanted_GQ: Tensor, rounds: int = 200) -> Tensor:
    """Weights above 0 that bring `matrix @ weights` close to what is wanted, by multiplicative updates."""
    gram_GMM, target_GM = matrix_GQM.mT @ matrix_GQM, (matrix_GQM.mT @ wanted_GQ[..., None])[..., 0]
    weight_GM = torch.ones_like(target_GM)
    for _ in range(rounds):
        now_GM = (gram_GMM @ weight_GM[..., None])[..., 0]
        weight_GM = (weight_GM * target_GM / now_GM.clamp(min=1e-9)).clamp(1e-4, 1e4)
    return weight_GM


def least_squares(matrix_GQM: Tensor, wanted_GQD: Tensor) -> Tensor:
    """`X [G, M, D]` of the smallest `|matrix X - wanted|`, slightly regularized."""
    gram_GMM = (matrix_GQM.mT @ matrix_GQM).double()
    ridge = 1e-4 * gram_GMM.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None] * torch.eye(gram_GMM.shape[-1]).double()
    return torch.linalg.solve(gram_GMM + ridge, (matrix_GQM.mT @ wanted_GQD).double()).float()


class Reader:
    """Answers a question from one document in several forms, all at once."""

    def __init__(self, loaded: LoadedModel, max_new_tokens: int) -> None:
        self.loaded, self.max_new_tokens = loaded, max_new_tokens
        self.backbone: Any = loaded.model.backbone
        self.backbone.set_attn_implementation(ATTENTION)
        self.layers = range(loaded.model.config.text_config.num_hidden_layers)
        self.forms = forms(self.layers)

    @torch.inference_mode()
    def answers(self, question: Question) -> dict[str, str]:
        """By form what the model writes."""
        template, document = self.loaded.template, question.positives[0]
        passage = Passage(1, encoded_text(document.title, document.text), document.date or UNDATED)
        ids = list(template.context(question.question, [passage]).ids)
        written = [*template.prefix_ids, *template.tokens("{text}", text=template.passages([passage]))]
        first, last = len(template.prefix_ids), _common(ids, written)
        prefix, looked = self._looked(ids[:last], first)
        makers = {"text": whole, "chosen": chosen, "matched": matched, "mean": self._mean}
        kept = [
            {layer: makers[form.kind](looked[layer], form.rate) for layer in form.layers if form.kind in makers}
            for form in self.forms
        ]
        Seen.rows = {layer: _batch([_joined(prefix[layer], rows.get(layer)) for rows in kept]) for layer in self.layers}
        try:
            texts = self._decoded(ids[last:], last)
        finally:
            Seen.rows = {}
        return {form.name: text for form, text in zip(self.forms, texts, strict=True)}

    def _looked(self, ids: Sequence[int], first: int) -> tuple[dict[int, Rows], dict[int, Looked]]:
        """Of every layer: the rows before the document, and its states."""
        again = [*ids, *self.loaded.template.tokens(REPEAT), *ids[first:]]
        Seen.recorded = {}
        self.backbone(torch.tensor([again]), use_cache=False)
        recorded, Seen.recorded = Seen.recorded, None
        prefix, looked, last = {}, {}, len(ids)
        place_S = torch.arange(first, last).float()
        for layer, (query_HTD, key_GTD, value_GTD) in recorded.items():
            G, _, D = key_GTD.shape
            asked_GQD = query_HTD[:, first - last :].reshape(G, -1, D)
            prefix[layer] = Rows.plain(key_GTD[:, :first], value_GTD[:, :first])
            keys_GSD, values_GSD = key_GTD[:, first:last], value_GTD[:, first:last]
            unrotated_GSD = self._rotate(keys_GSD, place_S, back=True)
            looked[layer] = Looked(keys_GSD, values_GSD, unrotated_GSD, place_S, asked_GQD, D**-0.5)
        return prefix, looked

    def _rotate(self, keys_GSD: Tensor, place_S: Tensor, back: bool = False) -> Tensor:
        """Keys rotated to some places by RoPE, or back from there."""
        cos, sin = self.backbone.base_model.rotary_emb(keys_GSD, place_S[None])
        half = keys_GSD.shape[-1] // 2
        turned = torch.cat([-keys_GSD[..., half:], keys_GSD[..., :half]], -1)
        return keys_GSD * cos.float() + turned * sin.float() * (-1 if back else 1)

    def _mean(self, looked: Looked, rate: int) -> Rows:
        """Means of some tokens, rotated to where they stand in the mean."""
        keys = torch.stack([part.mean(1) for part in looked.unrotated.split(rate, 1)], 1)
        values = torch.stack([part.mean(1) for part in looked.values.split(rate, 1)], 1)
        places = torch.stack([part.mean() for part in looked.places.split(rate)])
        return Rows.plain(self._rotate(keys, places), values)

    def _decoded(self, ids: Sequence[int], place: int) -> list[str]:
        """What every form of the batch writes behind the same tokens, greedily."""
        template, B = self.loaded.template, len(self.forms)
        cache = DynamicCache(config=self.loaded.model.config.text_config)
        now = torch.tensor([ids]).expand(B, -1)
        found: list[list[int]] = [[] for _ in range(B)]
        over = [False] * B
        for _ in range(self.max_new_tokens):
            positions = torch.arange(place, place + now.shape[1])[None].expand(B, -1)
            place += now.shape[1]
            out = self.backbone(now, position_ids=positions, past_key_values=cache, logits_to_keep=1)
            best = out.logits[:, -1].argmax(-1).tolist()
            for row, token in enumerate(best):
                over[row] = over[row] or token in template.stop_ids
                if not over[row]:
                    found[row].append(token)
            if all(over):
                break
            now = torch.tensor(best)[:, None]
        return [template.text(row).strip() for row in found]


@dataclass(frozen=True, slots=True)
class Form:
    """How a document is kept, and which layers see it."""

    kind: str
    rate: int
    layers: range

    @property
    def name(self) -> str:
        rate, first, last = f"/{self.rate}" if self.rate > 1 else "", self.layers[0], self.layers[-1]
        return f"{self.kind}{rate} {first}-{last}"


def forms(layers: range) -> list[Form]:
    """The forms that are measured."""
    some = [one for one in SOME if one[-1] in layers]
    found = [Form("none", 1, layers), Form("text", 1, layers), Form("mean", 4, layers)]
    found += [Form("text", 1, one) for one in some]
    for kind in ("chosen", "matched"):
        found += [Form(kind, rate, layers) for rate in RATES]
        found += [Form(kind, 4, one) for one in some if one[0] == SOME[0][0]]
    return found


def _joined(prefix: Rows, rows: Rows | None) -> Rows:
    if rows is None:
        return prefix
    pairs = ((getattr(prefix, name), getattr(rows, name)) for name in ("keys", "values", "bias"))
    return Rows(*(torch.cat(pair, dim=1) for pair in pairs))


def _batch(rows: Sequence[Rows]) -> Rows:
    """Rows of several forms in one tensor, shorter ones filled up with rows that nothing sees."""
    M = max(one.bias.shape[1] for one in rows)

    def filled(one: Tensor, value: float) -> Tensor:
        return torch.cat([one, one.new_full((one.shape[0], M - one.shape[1], *one.shape[2:]), value)], dim=1)

    keys, values = (torch.stack([filled(getattr(one, name), 0.0) for one in rows]) for name in ("keys", "values"))
    return Rows(keys, values, torch.stack([filled(one.bias, _NO_ROW) for one in rows]))


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    return next((place for place, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]), len(right))


def answered(reader: Reader, files: Sequence[Path], count: int, out: Path | None) -> Iterator[dict[str, Any]]:
    """The answers to the first questions of every file, those kept in `out` first."""
    known = [json.loads(line) for line in out.read_text("utf-8").splitlines()] if out and out.is_file() else []
    done = {(one["set"], one["id"]) for one in known}
    wanted = {file: read_questions(file).questions[:count] for file in files}
    yield from (one for one in known if one["set"] in {_set(file) for file in files})
    for place in range(max(map(len, wanted.values()))):
        for file, questions in wanted.items():
            if place >= len(questions) or (_set(file), questions[place].id) in done:
                continue
            question = questions[place]
            one = {"set": _set(file), "id": question.id, "wanted": list(question.answers)}
            one["answers"] = reader.answers(question)
            if out:
                with out.open("a", encoding="utf-8") as kept:
                    kept.write(json.dumps(one, ensure_ascii=False) + "\n")
            yield one


def _set(file: Path) -> str:
    return file.name.split(".")[0]


def scored(found: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """By set and form: F1 and the share of answers that hold the words, with 95% intervals."""
    sets: dict[str, dict[str, dict[str, Any]]] = {}
    for name in sorted({one["set"] for one in found}):
        own = [one for one in found if one["set"] == name]
        for form in own[0]["answers"]:
            pairs = [(one["answers"][form], one["wanted"]) for one in own]
            figures = {"f1": [f1(*pair) for pair in pairs], "holds": [substring_match(*pair) for pair in pairs]}
            sets.setdefault(name, {})[form] = {key: asdict(bootstrap(values)) for key, values in figures.items()}
    return sets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions_of", type=Path, nargs="+", metavar="QUESTIONS")
    parser.add_argument("--questions", type=int, default=200, help="of every file, at most")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--adapter")
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--out", type=Path, help="keep answers here, and go on with them")
    add_json(parser)
    options = parser.parse_args()
    loaded = load(options.model, adapter=options.adapter)
    reader = Reader(loaded, options.max_new_tokens)
    found = []
    for one in answered(reader, options.questions_of, options.questions, options.out):
        found.append(one)
        print(f"\r{len(found)} answered", end="", file=sys.stderr)
    sets = scored(found)
    for name, of_forms in sets.items():
        for form, figures in of_forms.items():
            shares = (f"{key} {100 * one['mean']:.1f} ({100 * one['low']:.1f} to {100 * one['high']:.1f})"
                      for key, one in figures.items())  # fmt: skip
            print(f"{name:<12} {form:<30} {'  '.join(shares)}")
    write_json(options.json, {"questions": len(found), "sets": sets}, loaded)


if __name__ == "__main__":
    main()
