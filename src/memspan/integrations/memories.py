"""What the adapters to frameworks have in common: which memories they take, and a document as they write it."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

from memspan.files import without_folder
from memspan.generate.memory import Memory
from memspan.types import Evidence


def in_any_order(memory: Memory) -> Memory:
    """The same memory, for frameworks, which call from threads of their own, several at a time.

    Raises:
        ValueError: it is shared with other ranks, which all must ask in one order.
    """
    if memory.ranks is not None:
        raise ValueError("ranks ask in one order, frameworks in any; open the memory in one process")
    return memory


def metadata_of(item: Evidence) -> dict[str, Any]:
    """A document's metadata: its own as they were given, and under `memspan` what the bank and the selector say of it.

    Chains expect `source` and `title`: they are the external id and the title, unless the document's own say otherwise.
    """
    ours = cited(item)
    given = ours.pop("metadata")
    del ours["text"]
    return {"source": item.external_id, "title": item.title, **given, "memspan": ours}


def cited(item: Evidence) -> dict[str, Any]:
    """A document that was found as a dict, without the folders of this machine."""
    return {**dataclasses.asdict(item), "metadata": without_folder(item.metadata)}


def name_of(memory: Memory) -> str:
    """Names a bank apart from others of its name, and tells nothing of where it is."""
    folder = memory.bank.folder.resolve()
    return f"{folder.name}-{hashlib.sha256(str(folder).encode(errors='surrogateescape')).hexdigest()[:12]}"
