"""How well lexical search, router and `hybrid` find evidence, set by set, and which fusion `hybrid` should use.

    memspan add BANK DATA/dev/bank.jsonl.gz
    python benchmarks/retrieval.py BANK DATA/dev/*_dev.jsonl.gz [--adapter DIR] [--dtype NAME] [--questions N]
        [--json FILE]

Of every set, recall@1, @5 and @16 and all gold in 16 by: the bank's full-text index (BM25), the router (all MSA layers,
and each alone), `hybrid` as shipped; with the extra `eval`, all-MiniLM-L6-v2 (`dense`) and its fusions with BM25
(`fused`, a weighted sum; `rrf`, reciprocal ranks); where questions need several documents, BM25 and `hybrid` in two
rounds (8 documents each, the second looked for with the names in the first two). Beside it the differences of `hybrid`
from BM25, `fused` and `rrf` at 5 and 16, question by question, pooled over the sets with a bootstrap interval.
--weights prints `hybrid` for other shares of the router: choose by a hold-out of the training data, not by the sets
that are reported.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from random import Random

from plots import add_json, write_json

from memspan import Memory
from memspan.bank.scope import EVERYTHING
from memspan.eval.metrics import all_found_at, paired_bootstrap, recall_at
from memspan.generate.finder import Finder, SearchQuery, passages_of
from memspan.generate.lexical import next_query
from memspan.generate.selectors import SELECTORS
from memspan.routing.ranking import ROUTER_WEIGHT, Selected, fuse
from memspan.text.questions import Question, read_questions

DEPTHS = (1, 5, 16)
LAST = DEPTHS[-1]
COLUMNS = (*(f"@{depth}" for depth in DEPTHS), f"all@{LAST}")
SEARCHED = 64
ROUND_DOCUMENTS, NAMES_OF = 8, 2
WITH_MINILM = ("dense", "fused", "rrf")
BATCH = 16

Rankings = dict[str, list[str]]


class Bench:
    """Rankings of one bank's documents, as external ids by (title, text)."""

    def __init__(self, memory: Memory, weights: Sequence[float]) -> None:
        self._memory, self._weights = memory, weights
        self._baselines = WITH_MINILM if all(map(find_spec, SELECTORS["dense"].needs.packages)) else ()
        stored = memory.bank.catalog.page(memory.namespace, 0, 10**7)
        self._names = {found.id: str(found.id) for found in stored}
        self._by_text = {(found.title, found.text): str(found.id) for found in stored}

    def gold(self, question: Question) -> set[str]:
        """The evidence of a question that is in the bank."""
        found = (self._by_text.get((document.title, document.text)) for document in question.positives)
        return {name for name in found if name is not None}

    def rank(self, questions: Sequence[Question], rounds: bool) -> list[Rankings]:
        """Rankings of all ways for some questions."""
        template = self._memory.loaded.template
        with self._memory.bank.snapshot(self._memory.namespace) as snapshot:
            finder = Finder(self._memory.loaded, snapshot, EVERYTHING)
            queries = [SearchQuery(one.question, template.context(one.question)) for one in questions]
            routed = finder.route(queries)
            lexical = [snapshot.search(one.question, SEARCHED, EVERYTHING) for one in questions]
            found = []
            for words, (ranked, layers) in zip(lexical, routed, strict=True):
                one = {"bm25": words, "router": [(item.document_id, item.score) for item in ranked]}
                one |= {f"layer {item.layer}": list(zip(item.document_ids, item.scores)) for item in layers}  # noqa: B905
                one["hybrid"] = fuse(words, ranked)
                one |= {f"hybrid {weight}": fuse(words, ranked, weight) for weight in self._weights}
                found.append({name: [self._names[i] for i, _ in ranking[:LAST]] for name, ranking in one.items()})
            for name in self._baselines:
                for one, result in zip(found, finder.rank(name, queries, LAST), strict=True):
                    one[name] = [self._names[item.document_id] for item in result.selected[:LAST]]
            if rounds:
                for name in ("bm25", "hybrid"):
                    self._second_round(finder, name, questions, found)
        return found

    def _second_round(self, finder: Finder, name: str, questions: Sequence[Question], found: list[Rankings]) -> None:
        template = self._memory.loaded.template
        for question, one in zip(questions, found, strict=True):
            first = one[name][:ROUND_DOCUMENTS]
            read = finder.evidence([Selected(int(name), 0.0, None) for name in first[:NAMES_OF]])
            look = SearchQuery(
                next_query(question.question, read), template.context(question.question, passages_of(read))
            )
            again = finder.rank("lexical" if name == "bm25" else "hybrid", [look], SEARCHED)[0]
            second = [str(item.document_id) for item in again.selected if str(item.document_id) not in first]
            one[f"{name}, 2 rounds"] = [*first, *second][:LAST]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bank", type=Path)
    parser.add_argument("sets", type=Path, nargs="+")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--adapter")
    parser.add_argument("--dtype", help="that the model asks in; the bank may have been encoded in another")
    parser.add_argument("--questions", type=int, help="of each set, at most; default: all")
    parser.add_argument("--weights", type=float, nargs="*", default=[])
    parser.add_argument("--no-rounds", action="store_true")
    add_json(parser)
    options = parser.parse_args()
    memory = Memory.open(options.bank, options.model, adapter=options.adapter, dtype=options.dtype)
    bench = Bench(memory, options.weights)
    figures: dict[str, dict[str, dict[str, float]]] = {}
    pooled: dict[str, list[list[float]]] = {}
    for path in options.sets:
        questions = [one for one in read_questions(path).questions if bench.gold(one)]
        if options.questions:
            questions = Random(0).sample(questions, min(options.questions, len(questions)))
        rounds = not options.no_rounds and any(one.type == "multi" for one in questions)
        rows: dict[str, list[list[float]]] = {}
        for start in range(0, len(questions), BATCH):
            some = questions[start : start + BATCH]
            for question, rankings in zip(some, bench.rank(some, rounds), strict=True):
                gold = bench.gold(question)
                for name, ranking in rankings.items():
                    scores = [recall_at(ranking, gold, depth) for depth in DEPTHS]
                    rows.setdefault(name, []).append([*scores, all_found_at(ranking, gold, LAST)])
        means = {
            name: dict(zip(COLUMNS, map(_mean, zip(*some, strict=True)), strict=True)) for name, some in rows.items()
        }
        figures[path.name.partition(".")[0]] = means
        for name in ("hybrid", "bm25", *WITH_MINILM):
            pooled.setdefault(name, []).extend(rows.get(name, ()))
        print(f"{path.name}: {len(questions)} questions", flush=True)
        for name, mean in means.items():
            print(f"  {name:<16}", "  ".join(f"{column} {value:.3f}" for column, value in mean.items()), flush=True)
    names = [name for name in next(iter(figures.values())) if all(name in means for means in figures.values())]
    print(f"mean of {len(figures)} sets; `hybrid` gives the router {ROUTER_WEIGHT}")
    for name in names:
        values = {column: _mean([means[name][column] for means in figures.values()]) for column in COLUMNS}
        print(f"  {name:<16}", "  ".join(f"{column} {value:.3f}" for column, value in values.items()))
    differences: dict[str, list[float]] = {}
    for name in ("bm25", "fused", "rrf"):
        for column in (1, 2) if pooled[name] else ():
            ours, theirs = ([row[column] for row in pooled[one]] for one in ("hybrid", name))
            gain, p = paired_bootstrap(ours, theirs)
            differences[f"hybrid - {name} {COLUMNS[column]}"] = [gain.mean, gain.low, gain.high, p]
            print(
                f"recall{COLUMNS[column]} of {gain.count} questions: {name} {_mean(theirs):.3f}, hybrid "
                f"{_mean(ours):.3f}, {gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}), p {p:.4f}"
            )
    write_json(options.json, {"sets": figures, "differences": differences}, memory.loaded)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
