"""`Sync`: bringing a bank in step with the folders that its documents were read from.

First what is on the disk is compared with the bank's ledger (`differences`), and the plan can be shown. Then documents
of moved files get their new ids, new and changed files are read and added, and what is gone is forgotten. A run that
was ended early is continued by the next.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from memspan.bank import edits
from memspan.bank.catalog import Catalog
from memspan.bank.differences import covers, differences
from memspan.bank.ledger import FileReader, KnownFile, Ledger
from memspan.bank.texts import TextBank
from memspan.errors import CorpusError, SyncRefused
from memspan.text.corpus import ReadProgress, found_documents
from memspan.text.folders import GivenPath, Root, Roots, rebased
from memspan.text.readers import ReadOptions
from memspan.text.readers.formats import AS_FOUND
from memspan.types import AddReport, Document, Skipped


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """What differs between folders and their memory: ids of documents (of a file of records, what its ids begin with).

    Attributes:
        added, changed: files to be read.
        moved: files of the same content under another name: old and new id. Nothing is encoded for them.
        removed: files that are gone.
        unchanged: how many files are as they were.
        skipped: what cannot be read. Its memory stays.
        refused: why nothing is done unless it is forced; empty where there is no reason.
    """

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    moved: tuple[tuple[str, str], ...] = ()
    removed: tuple[str, ...] = ()
    unchanged: int = 0
    skipped: tuple[Skipped, ...] = ()
    refused: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be done."""
        return not (self.added or self.changed or self.moved or self.removed)


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a sync did.

    Attributes:
        plan: what was to be done; of a dry run, all there is.
        done: what was added; its `skipped` is all that could not be read.
        forgotten: documents that were deleted.
    """

    plan: SyncPlan
    done: AddReport = field(default_factory=AddReport)
    forgotten: int = 0


class Sync:
    """One look at some folders, and what follows from it.

    Attributes:
        plan: what differs.
    """

    def __init__(
        self,
        bank: TextBank | None,
        namespace: str,
        paths: Iterable[Path],
        catalog: Catalog | None,
        root: str | None = None,
        options: ReadOptions = AS_FOUND,
    ) -> None:
        """Look; nothing is changed.

        Args:
            bank: None where there is none yet; its plan cannot be done then.
            paths: folders, files, and patterns of files as `docs/**/*.md`.
            catalog: whose snapshot of the bank is read.
            options: how files are read.
            root: what the one folder is called in the bank; where it moved, or the bank came from another machine.

        Raises:
            CorpusError: a path does not exist, and the bank knows nothing of it; or it is not clear which folder is
                which, and `root` says it.
        """
        self._bank, self._namespace = bank, namespace
        self._named: Root | None = None
        self._options = options
        ledger = None if catalog is None else Ledger(catalog, namespace)
        self._roots = Roots() if ledger is None else ledger.roots()
        known = [] if ledger is None else ledger.files()
        given = [_meant(path, known) for path in paths]
        if root is not None:
            if len(given) != 1 or given[0].alone or not root.strip("/"):
                raise CorpusError("root is the name of one folder; name that folder alone, with --root NAME")
            self._named = named = self._roots.add(given[0].folder, name=root.strip("/"))
            known = [file.under(named.path) if file.root == named.name else file for file in known]
        for one in given:
            self._check_is_known(one)
        self._found = found = differences(given, known, self._roots, options)
        self.plan = SyncPlan(
            tuple(placed.name for placed in found.new),
            tuple(file.name for _, file in found.changed),
            tuple((file.name, placed.name) for file, placed in found.moved),
            tuple(file.name for file in found.gone),
            len(found.standing),
            tuple(found.skipped),
            tuple(found.refused),
        )

    def apply(self, add: Callable[[Iterable[Document]], AddReport], *, force: bool = False) -> SyncReport:
        """Do what is planned.

        Args:
            add: adds documents to the bank, as `add_documents` does.
            force: forget also so much as if a folder were not mounted.

        Raises:
            SyncRefused: see `force`; nothing was changed.
            BankBusy: another process writes; what was done before stays, and the next run continues.
        """
        if self.plan.refused and not force:
            raise SyncRefused(f"{'; '.join(self.plan.refused)}. If they were deleted: --force (in Python force=True)")
        bank, found = self._bank, self._found
        assert bank is not None, "there is a bank that documents are added to"
        if self._named is not None:
            with bank.writing(), bank.catalog.transaction():
                Ledger(bank.catalog, self._namespace).keep_root(self._named)
        self._move(bank)
        skipped = list(found.skipped)
        reader = FileReader(bank.catalog, self._namespace, ReadProgress(()), self._roots, found.standing, self._options)
        files = [placed.file for placed in (*found.new, *(placed for placed, _ in found.changed))]
        done = add(found_documents(skipped, reader.read(files))) if files else AddReport()
        ledger = Ledger(bank.catalog, self._namespace)
        gone = [id for file in found.gone for id in ledger.documents_of(file.id)]
        if not done.interrupted:
            gone += [id for file in reader.files.values() if file.is_whole for id in file.gone]
        forgotten = self._forget(bank, gone)
        if not done.interrupted:
            reader.mark_read()
            ledger.mark_read(found.touched)
        return SyncReport(self.plan, dataclasses.replace(done, skipped=tuple(skipped)), forgotten)

    def _check_is_known(self, given: GivenPath) -> None:
        """
        Raises:
            CorpusError: the folder may be one that the bank knows in another place.
        """
        name, roots = Path(given.folder).name, self._roots.all
        if given.alone or any(rebased(given.folder, "_", one.path) for one in roots if one.path):
            return
        if any(one.name == name and not os.path.isdir(one.path) for one in roots):
            raise CorpusError(
                f"the bank knows a folder {name!r} that is not where it was. If {given.path} is that folder, say so: "
                f"--root {name}; if it is another one, name it: --root OTHER (in Python root=)"
            )

    def _move(self, bank: TextBank) -> None:
        """Give the documents of moved files their new ids."""
        if not self._found.moved:
            return
        catalog, ledger = bank.catalog, Ledger(bank.catalog, self._namespace)
        renamed: list[tuple[str, Document]] = []
        with bank.writing():
            with catalog.transaction():
                for file, placed in self._found.moved:
                    for old, new in ledger.move_file(file, placed.root, placed.relative).items():
                        stored = catalog.source(self._namespace, old)
                        if stored is not None:
                            metadata = {**stored.document.metadata, "path": placed.relative}
                            changed = dataclasses.replace(stored.document, external_id=new, metadata=metadata)
                            renamed.append((old, changed))
            edits.rename_sources(catalog, self._namespace, renamed)
            ledger.drop(old for old, document in renamed if document.external_id != old)

    def _forget(self, bank: TextBank, external_ids: list[str]) -> int:
        """Delete documents that the files gave; returns how many there were."""
        if not (external_ids or self._found.gone):
            return 0
        catalog = bank.catalog
        with bank.writing():
            live = [id for id in external_ids if catalog.hashes(self._namespace, id) is not None]
            edits.delete_sources(catalog, self._namespace, live)
            Ledger(catalog, self._namespace).drop(external_ids)
        return len(live)


def _meant(path: Path, known: Iterable[KnownFile]) -> GivenPath:
    """What a path means. What is not there any more may be a file, or a folder, that the bank knows."""
    given = GivenPath.of(path, patterns=True)
    if given.alone and not os.path.exists(path):
        folder = GivenPath(path, os.path.realpath(path))
        if any(file.is_in(folder.folder) for file in known):
            return folder
    is_known = partial(covers, given) if given.alone else lambda file: file.is_in(given.folder)
    if not os.path.exists(given.path) and not any(map(is_known, known)):
        raise CorpusError(f"{path} does not exist, and the bank knows nothing of it; check the path")
    return given
