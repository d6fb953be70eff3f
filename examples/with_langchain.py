"""LangChain over a memory of notes: a conversation with citations, and a retriever in a chain. In this process.

    pip install 'memspan[langchain]'
    python examples/with_langchain.py [--bank DIR]

With a running server (`memspan serve`) LangChain's own `ChatOpenAI` does the same: docs/frameworks.md.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from transformers.utils import logging

from memspan import Memory
from memspan.integrations.langchain import ChatMemspan, MemspanRetriever

NOTES = Path(__file__).parent / "notes" / "people"
QUESTIONS = ("Where does Owen Pritchard live?", "What did he study?")


def converse(memory: Memory) -> None:
    """Ask, and ask on: earlier messages are read, and their names help to find what is asked next."""
    chat = ChatMemspan(memory=memory, max_documents=2, max_tokens=32)
    said: list[BaseMessage] = []
    for question in QUESTIONS:
        said.append(HumanMessage(question))
        answer = chat.invoke(said)
        said.append(AIMessage(answer.text))
        cited = [item["external_id"] for item in answer.response_metadata["citations"]]
        print(f"{question}\n  {answer.text}\n  cites {', '.join(cited)}; {answer.usage_metadata}")


def chain(memory: Memory) -> None:
    """Find notes and put them into a prompt, for any chat model; the prompt alone is shown."""
    retriever = MemspanRetriever(memory=memory, k=2)
    prompt = ChatPromptTemplate.from_template("Answer from the notes.\n{notes}\nQuestion: {question}")
    found = retriever.invoke("Who worked as a park ranger?")
    notes = "\n".join(f"[{note.metadata['source']}] {note.page_content.splitlines()[0]}" for note in found)
    print(prompt.invoke({"notes": notes, "question": "Who worked as a park ranger?"}).to_string())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=Path, help="folder of the bank; default: a temporary one")
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        bank = parser.parse_args().bank or Path(scratch) / "people"
        with Memory.open(bank, create=True) as memory:
            memory.add_files(NOTES)
            converse(memory)
            chain(memory)


if __name__ == "__main__":
    main()
