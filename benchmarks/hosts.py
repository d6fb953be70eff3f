"""Time to first token over hosts beside that of one, in one run; and what travels beside what is predicted.

    python benchmarks/hosts.py [--hosts 2] [--chunks 40000] [--questions 3] [--json FILE]

The hosts are network namespaces of this machine (Linux), and each has a thread. So their processors are shared: where
there are fewer idle cores than hosts, the wall time says nothing about speed, and CPU seconds stand beside it. The
links are as fast as the kernel, or 1 Gbit/s and 5 ms (`slow`). A question goes the way of `memspan bench latency`: over
made-up latents of the model's shapes, with a text that is always the same.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from network import SLOW, Host, Link, on_hosts, own_network
from plots import add_json, write_json

from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.bank.synthetic import made_up, write_synthetic
from memspan.bench.latency import Latency, LatencySettings
from memspan.eval.plots import spread
from memspan.model.convert import LoadedModel, load
from memspan.model.decoding import prepare
from memspan.routing.cost import Asked, routing_cost
from memspan.routing.ranks import Ranks

_CHUNKS_PER_DOCUMENT = 2


def measure(loaded: LoadedModel, folder: Path, count: int, link: Link | None, settings: LatencySettings) -> Any:
    """Figures of the last host, which receives the queries, too: seconds to the first token, bytes that it received,
    and on its cable."""

    def do(host: Host) -> dict[str, Any]:
        ranks = Ranks.join(torch.device("cpu")) if count > 1 else None
        latency = Latency(loaded, settings)
        prepare(loaded.model)
        with closing(MemoryBank.open(folder)) as bank:
            latency.ask(bank, 0, ranks)
            before = host.received_bytes(), ranks.received_bytes if ranks else 0
            times = [latency.ask(bank, 1 + number, ranks) for number in range(settings.questions)]
            received = (ranks.received_bytes if ranks else 0) - before[1]
            on_cable = host.received_bytes() - before[0]
        return {
            "first_token": spread([one.first_token for one in times]),
            "first_token_cpu": spread([one.first_token_cpu for one in times]),
            "select": spread([one.stages["select"] for one in times]),
            "received_bytes": received // settings.questions,
            "on_cable_bytes": on_cable // settings.questions,
        }

    found = on_hosts(do, count, link)
    if None in found:
        sys.exit("a host was lost; its error is above")
    return found[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--chunks", type=int, default=40_000)
    parser.add_argument("--questions", type=int, default=3)
    parser.add_argument("--model", type=Path, help="default: the default model")
    add_json(parser)
    options = parser.parse_args()
    if os.environ.get("MEMSPAN_APART") is None:
        again = own_network(sys.executable, *sys.argv)
        if again is None:
            sys.exit("no process may have a network of its own here")
        os.execvpe(again[0], again, {**os.environ, "MEMSPAN_APART": "1"})
    torch.set_num_threads(1)  # also of the hosts, which are forked
    loaded = load(options.model, device="cpu")
    settings = LatencySettings((options.chunks * loaded.model.config.chunk_size,), options.questions, new_tokens=1)
    manifest = made_up(manifest_of(loaded))
    with tempfile.TemporaryDirectory() as scratch:
        folder, most = Path(scratch) / "bank", manifest.row_bytes * options.chunks // (2 * options.hosts)
        how = {"chunks_per_document": _CHUNKS_PER_DOCUMENT, "max_segment_bytes": most}
        with closing(write_synthetic(folder, manifest, options.chunks, **how)) as bank, bank.snapshot() as snapshot:
            shards = [len(shard.document_C) for shard in snapshot.shards]
        sides = ("one host", 1, None), ("hosts", options.hosts, None), ("hosts, slow", options.hosts, SLOW)
        figures = {name: measure(loaded, folder, count, link, settings) for name, count, link in sides}
    asked = Asked(1, 32, loaded.model.config.top_k_docs, _CHUNKS_PER_DOCUMENT)
    cost = routing_cost(manifest, shards, options.hosts, asked)
    predicted = {**asdict(cost), "waits_on_slow_links": cost.steps * SLOW.seconds}
    shape = {"hosts": options.hosts, "chunks": options.chunks, "msa_layers": len(manifest.msa_layers)}
    print(write_json(options.json, {"shape": shape, "predicted": predicted, "sides": figures}, loaded))


if __name__ == "__main__":
    main()
