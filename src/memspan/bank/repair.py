"""Mending what can be made again from a bank's stored text: latents, full-text indexes, parts of documents."""

from __future__ import annotations

from memspan.bank import edits
from memspan.bank.add import add_documents
from memspan.bank.bank import MemoryBank
from memspan.bank.compaction import sweep, write_missing_coarse
from memspan.bank.encode import check_model
from memspan.bank.folder import segments_folder
from memspan.bank.reencode import restore_segments
from memspan.bank.verify import Fault, verify
from memspan.model.convert import LoadedModel
from memspan.text.parts import split_document


def repair(bank: MemoryBank, loaded: LoadedModel, faults: list[Fault]) -> list[Fault]:
    """Mend what can be mended, and verify again; returns what is left.

    Damaged latents are encoded again under the same ids. A source that lost parts is added anew from its text; former
    versions of it keep their texts, and are found by words only.

    Raises:
        BankMismatch: `loaded` is not the model of the bank.
        BankBusy: another process writes.
        BankError: the catalog is too damaged to be written.
    """
    check_model(bank.manifest, loaded)
    segments_folder(bank.folder).mkdir(exist_ok=True)
    broken_sources: dict[str, set[str]] = {}
    with bank.locked():
        edits.delete_orphans(bank.catalog)
        for namespace in bank.catalog.namespaces():
            of_namespace = [fault for fault in faults if fault.namespace == namespace]
            live = {number for number, _ in bank.catalog.segments(namespace)}
            segment_ids = sorted(live & {fault.segment_id for fault in of_namespace if fault.segment_id is not None})
            if segment_ids:
                restore_segments(bank, loaded, namespace, segment_ids)
            write_missing_coarse(bank.catalog, bank.folder, bank.manifest, namespace)
            if of_namespace:
                edits.rebuild_words(bank.catalog, namespace)
            broken_sources[namespace] = {fault.where for fault in of_namespace if fault.kind == "document"}
        sweep(bank.catalog, bank.folder)
    for namespace, names in broken_sources.items():
        stored = [bank.catalog.source(namespace, name) for name in sorted(names)]
        documents = [source.document for source in stored if source is not None]
        add_documents(bank, loaded, documents, namespace=namespace, existing="renew")
    with bank.locked():
        edits.delete_orphans(bank.catalog)
    left = verify(bank)
    with bank.locked():
        for namespace, name in {(fault.namespace or "", fault.where) for fault in left if fault.kind == "document"}:
            stored = {one.id: one for one in bank.catalog.versions(namespace, name) if one.superseded_at is not None}
            own = bank.catalog.source(namespace, name)
            cut = [
                (number, split_document(one.document, loaded.template, loaded.model.config.max_document_tokens))
                for number, one in stored.items()
                if own is None or number != own.id
            ]
            edits.set_aside(bank.catalog, namespace, cut)
    return verify(bank)
