"""LlamaIndex over a memory of notes: a retriever with filters, and a query engine on top of it. In this process.

    pip install 'memspan[llama-index]'
    python examples/with_llama_index.py [--bank DIR]

The query engine is given LlamaIndex's mock of a language model, which repeats its prompt; put any `LLM` in its place.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from llama_index.core.llms.mock import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from transformers.utils import logging

from memspan import Memory
from memspan.integrations.llama_index import MemspanRetriever

NOTES = Path(__file__).parent / "notes" / "decisions"
QUESTION = "How many years of warranty does Brindlecomb give?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=Path, help="folder of the bank; default: a temporary one")
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        bank = parser.parse_args().bank or Path(scratch) / "decisions"
        with Memory.open(bank, create=True) as memory:
            memory.add_files(NOTES)
            for name, as_of in (("now", None), ("as of June 2024", "2024-06-30")):
                (best, *_) = MemspanRetriever(memory, k=3, as_of=as_of).retrieve(QUESTION)
                print(f"{name}: {best.metadata['source']} ({best.score:.2f})")
            engine = RetrieverQueryEngine.from_args(MemspanRetriever(memory, k=1), llm=MockLLM())
            response = engine.query(QUESTION)
            print(response)
            print("rests on", [item.metadata["source"] for item in response.source_nodes])


if __name__ == "__main__":
    main()
