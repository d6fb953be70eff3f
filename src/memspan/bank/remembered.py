"""Which model a bank was made with: a table beside the manifest, which readers that do not know it pass over.

The manifest says which model it is, by its fingerprint; this says where it was found.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from memspan.errors import CheckpointError
from memspan.model.shipped import ModelNames
from memspan.places import quoted

if TYPE_CHECKING:
    from memspan.bank.catalog import Catalog
    from memspan.bank.texts import TextBank

_TABLE = "CREATE TABLE IF NOT EXISTS model (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID"


def remember(catalog: Catalog, names: ModelNames | None) -> None:
    """Keep the model that encodes a bank, where it is another one than before, or elsewhere. None: nothing is kept."""
    if names is None or names == remembered(catalog):
        return
    with catalog.transaction():
        catalog.execute(_TABLE)
        rows = [("model", names.model), ("adapter", names.adapter)]
        catalog.execute_many("INSERT OR REPLACE INTO model VALUES (?, ?)", rows)


def bank_id(catalog: Catalog) -> str:
    """Which bank this is, 32 hexadecimal digits: drawn when it is first asked for, and the same ever after.

    Raises:
        BankError: it was never asked for, and the bank cannot be written.
    """
    query = "SELECT value FROM model WHERE key = 'bank'"
    found = catalog.value(query) if _is_there(catalog) else None
    if found is None:
        with catalog.transaction():
            catalog.execute(_TABLE)
            catalog.execute("INSERT OR IGNORE INTO model VALUES ('bank', ?)", (uuid.uuid4().hex,))
        found = catalog.value(query)
    return str(found)


def forget_id(catalog: Catalog) -> None:
    """Of a copy that goes its own way: be another bank."""
    if _is_there(catalog):
        with catalog.transaction():
            catalog.execute("DELETE FROM model WHERE key = 'bank'")


def _is_there(catalog: Catalog) -> bool:
    return catalog.value("SELECT 1 FROM sqlite_schema WHERE name = 'model'") is not None


def remembered(catalog: Catalog) -> ModelNames | None:
    """The model a bank was made with; None in a bank from before that was kept."""
    if not _is_there(catalog):
        return None
    values = dict(catalog.read("SELECT key, value FROM model"))
    return ModelNames(values["model"], values["adapter"]) if {"model", "adapter"} <= values.keys() else None


def names_for(
    bank: TextBank, model: str | Path | None, adapter: str | Path | None
) -> tuple[str | Path | None, str | Path | None]:
    """Model and adapter to open a bank with: what was given, or else what it was made with.

    Raises:
        CheckpointError: what it was made with is not there any more.
    """
    names = None if model is not None else remembered(bank.catalog)
    if names is None:
        return model, adapter
    for kind, place in (("model", names.model), ("adapter", str(names.adapter if adapter is None else adapter))):
        if Path(place).is_absolute() and not Path(place).is_dir():
            adapter_now = "DIR" if kind == "adapter" else names.adapter
            raise CheckpointError(
                f"{bank.place} was made with the {kind} in {place}, which is not there any more. If it moved, name "
                f"its new folder: --model DIR --adapter {adapter_now} (in Python model= and adapter=); a document that "
                "is added with them makes the bank remember it. For another model, encode the bank anew: "
                f"memspan reencode {quoted(bank.place)} --model DIR"
            )
    return names.model, names.adapter if adapter is None else adapter
