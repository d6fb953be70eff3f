"""`Encoder`: the pure step of encoding. Any engine may call it, in any number of processes, as often as it likes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from memspan.bank.edits import NewDocument
from memspan.bank.encode import EncodingRun, Part, check_model, windows
from memspan.bank.encoded import EncodedSegment, EncodingTask, Origin, TaskDocument, parsed, write_segments
from memspan.bank.folder import encoded_folder, make_folder
from memspan.bank.manifest import Manifest
from memspan.bank.remembered import names_for
from memspan.bank.texts import TextBank
from memspan.errors import BankError
from memspan.model.convert import LoadedModel, load
from memspan.places import BankPlace
from memspan.types import Span


def encoding_tasks(
    bank: TextBank, loaded: LoadedModel, *, namespaces: Iterable[str] | None = None, batch_tokens: int | None = None
) -> Iterator[EncodingTask]:
    """What a bank has to be encoded now, oldest first. Changes nothing; encode the tasks, and `commit` the rows.

    Tasks have the documents and the batches of a run in one process, so their latents are the same to the bit.

    Args:
        namespaces: whose documents; None: all.
        batch_tokens: padded tokens per forward. Default: what the device of `loaded` encodes fast.

    Raises:
        ReadOnlyBank: the bank was opened by its URL.
        BankMismatch: another model made the bank.
    """
    bank.check_owned("changed")
    check_model(bank.manifest, loaded)
    run = EncodingRun(loaded, batch_tokens=batch_tokens)
    for namespace in bank.catalog.namespaces() if namespaces is None else list(namespaces):
        for window in windows(bank.catalog, namespace, loaded.template, run):
            yield task_of(Origin.of(bank, namespace), run.batch_tokens, window)


def task_of(origin: Origin, batch_tokens: int, parts: Iterable[Part]) -> EncodingTask:
    """A window of pending documents as a task."""
    documents = (TaskDocument(part.document.document_id, part.text_crc32, tuple(part.ids)) for part in parts)
    return EncodingTask(origin, batch_tokens, tuple(documents))


class Encoder:
    """Encodes tasks for a bank: loads the model once, and gives rows of a manifest for each task.

    A task writes immutable files into the bank's folder, whose names their bytes determine, and changes nothing else.
    The same task gives the same files and the same row again. No lock is needed, and a process that encodes may be
    killed at any moment. For one thread at a time.

    Attributes:
        loaded: the model.
    """

    def __init__(
        self,
        model: str | Path | LoadedModel | None = None,
        adapter: str | Path | None = None,
        *,
        bank: str | os.PathLike[str],
        dtype: str | None = None,
        device: str | None = None,
    ) -> None:
        """
        Args:
            model, adapter: as for `memspan.model.convert.load`; None: what the bank was made with.
            bank: its folder, as this process sees it.

        Raises:
            BankError: there is no bank.
            CheckpointError: there is no such model.
        """
        self._bank = BankPlace.of(bank).folder
        self.loaded = model if isinstance(model, LoadedModel) else _load(self._bank, model, adapter, dtype, device)
        self._run = EncodingRun(self.loaded)
        self._known: Manifest | None = None
        self._most_tokens = sys.maxsize

    def __call__(self, task: EncodingTask | Mapping[str, Any]) -> list[dict[str, Any]]:
        """Encode a task, also as the JSON that it is; gives JSON.

        Raises:
            BankMismatch: it is of another version of memspan, or of another model.
            BankError: it is no task, or the bank's folder cannot be written.
        """
        return [segment.as_json() for segment in self.encode(parsed(EncodingTask, task, "the task"))]

    def encode(self, task: EncodingTask, run: EncodingRun | None = None) -> list[EncodedSegment]:
        """As a call.

        Args:
            run: counts and reports what is encoded, and may end it early.
        """
        task.origin.check_version()
        if task.origin.manifest != self._known:
            check_model(task.origin.manifest, self.loaded)
            self._known = task.origin.manifest
            self.loaded = self.loaded.keeping(self._known.content)
        if not self._bank.is_dir():
            raise BankError(f"there is no bank in {self._bank}; let all use the same folder")
        run = run or self._run
        run.loaded = self.loaded
        parts = [
            Part(NewDocument(one.id, Span(0, 1), len(one.tokens)), list(one.tokens), one.text_crc32)
            for one in task.documents
        ]
        run.batch_tokens = batch_tokens = min(task.batch_tokens, self._most_tokens)
        run.encode(run.batches(parts))
        if run.batch_tokens < batch_tokens:  # the device had no room
            self._most_tokens = run.batch_tokens
        folder = encoded_folder(self._bank)
        make_folder(folder)
        done = [part for part in parts if part.chunks]
        return write_segments(folder, task.origin, done, by_content=True)


def _load(
    bank: Path, model: str | Path | None, adapter: str | Path | None, dtype: str | None, device: str | None
) -> LoadedModel:
    with closing(TextBank.open(bank)) as opened:
        path, adapter = names_for(opened, model, adapter)
    return load(path, adapter=adapter, dtype=dtype, device=device)
