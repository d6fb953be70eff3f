"""`FrozenMemory`: documents encoded once, while nothing trains that shapes them but the router key projections.

Mean-pooling commutes with a linear map, so the pooled inputs of the MSA layers are kept, and routing keys are made anew
from them at every step; pooled K and V are kept as they are. A step then costs its contexts alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from memspan.errors import MemspanError
from memspan.files import whole_file
from memspan.model.modeling import MSAForCausalLM, is_router, routed_modules
from memspan.ops.pooling import valid_chunks
from memspan.ops.scoring import fold_keys
from memspan.text.packing import BATCH_TOKENS, length_batches
from memspan.text.template import PromptTemplate
from memspan.types import Document, EncodedDocuments

_log = logging.getLogger(__name__)


class FrozenMemory:
    """Documents in the form in which a model's layers pool them, in a file.

    Attributes:
        path: of the file; its name tells weights, texts and ids.
        names: `external_id` of every document.
        ids: the id that each is encoded under, by name: drawn at random when the file was built.
        texts: what of each is encoded.
    """

    def __init__(self, path: Path, model: MSAForCausalLM, names: Sequence[str], texts: Sequence[str]) -> None:
        """Open a file that `build` made of these documents.

        Raises:
            MemspanError: it is damaged, or of other documents.
        """
        self.path, self.names, self.texts = path, tuple(names), tuple(texts)
        layers = model.config.layers
        try:
            with safe_open(path, "pt") as file:
                self.ids = dict(zip(self.names, file.get_tensor("ids").tolist(), strict=True))
                self.num_chunks: tuple[int, ...] = tuple(file.get_tensor("chunks").tolist())
                self._hidden = {layer: file.get_tensor(f"hidden.{layer}") for layer in layers}
                self._content = {layer: file.get_tensor(f"content.{layer}") for layer in layers}
        except (OSError, SafetensorError, ValueError) as error:
            raise MemspanError(f"{path} is damaged ({error}); remove it, and it is built anew") from error
        counts = torch.tensor(self.num_chunks)
        self._first_N = counts.cumsum(0) - counts
        self._index = {name: index for index, name in enumerate(self.names)}

    @classmethod
    def build(
        cls,
        model: MSAForCausalLM,
        template: PromptTemplate,
        documents: Sequence[Document],
        part: Callable[[Document], str],
        folder: Path,
        *,
        seed: int = 0,
        max_id: int = 1_000_000,
        encode_tokens: int = BATCH_TOKENS,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> FrozenMemory:
        """Encode documents, or find them encoded. All are held in memory while the file is written.

        Writes `folder/frozen-KEY.safetensors`: per MSA layer `hidden.LAYER` `[C, F]` and `content.LAYER`
        `[C, 2, G, D]` in the model's number format, `chunks` and `ids` `[N]`. The file appears whole or not at all.

        Args:
            documents: with distinct names.
            part: what of a document is encoded (`Collator.part`).
            seed: of the ids; with another one everything is encoded anew.
            max_id: ids are drawn from 1 to this.
            on_progress: called with documents done and in all.

        Raises:
            ValueError: no documents, one name twice, or fewer ids than documents.
            MemspanError: the file cannot be written.
        """
        names, texts = [document.external_id for document in documents], [part(document) for document in documents]
        if not names or len(set(names)) < len(names) or max_id < len(names):
            raise ValueError(f"{len(names)} documents need distinct names, and ids from 1 to {max_id}")
        drawn = random.Random(seed).sample(range(1, max_id + 1), len(names))
        key = [model.weights_fingerprint(router_keys=False), str(model.dtype), names, texts, drawn]
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
        path = folder / f"frozen-{digest}.safetensors"
        if path.exists():
            return cls(path, model, names, texts)
        ids = [template.document(document_id, text) for document_id, text in zip(drawn, texts, strict=True)]
        tensors = _encode(model, ids, encode_tokens, on_progress)
        tensors["ids"] = torch.tensor(drawn)
        _write(path, tensors)
        _log.info("%d documents are kept in %s (%d MB)", len(names), path, path.stat().st_size // 10**6)
        return cls(path, model, names, texts)

    def __len__(self) -> int:
        """Documents."""
        return len(self.names)

    def encoded(self, model: MSAForCausalLM, names: Sequence[str]) -> EncodedDocuments:
        """Latents of some documents, as `model.encode` gives them: gradients reach the router key projections.

        Raises:
            ValueError: a document is not kept here, or the document side of the model trains.
        """
        training = next((name for name in _shapes_documents(model) if model.get_parameter(name).requires_grad), None)
        if training is not None:
            raise ValueError(f"frozen memory needs a frozen document side, but {training} trains")
        unknown = next((name for name in names if name not in self._index), None)
        if unknown is not None:
            raise ValueError(f"the document {unknown!r} is not in {self.path.name}; build it with all documents")
        indices = [self._index[name] for name in names]
        rows_C = self._rows(indices)
        keys, content = [], []
        for layer, attention in zip(model.config.layers, routed_modules(model), strict=True):
            hidden_CF = self._hidden[layer][rows_C].to(model.device)
            keys.append(fold_keys(attention.router_key(hidden_CF), model.config.similarity))
            content.append(self._content[layer][rows_C].to(model.device))
        return EncodedDocuments(
            torch.stack(keys), torch.stack(content), tuple(self.num_chunks[index] for index in indices)
        )

    def _rows(self, indices: Sequence[int]) -> torch.Tensor:
        """The rows of some documents, in their order."""
        counts = torch.tensor([self.num_chunks[index] for index in indices])
        before = counts.cumsum(0) - counts
        first_C = (self._first_N[list(indices)] - before).repeat_interleave(counts)
        return first_C + torch.arange(int(counts.sum()))


def _shapes_documents(model: MSAForCausalLM) -> Iterator[str]:
    """Names of the parameters that pooled hidden states, K and V depend on."""
    for name, _ in model.named_parameters():
        if not is_router(name) and not model.is_query_side(name):
            yield name


@torch.no_grad()
def _encode(
    model: MSAForCausalLM,
    documents: Sequence[Sequence[int]],
    encode_tokens: int,
    on_progress: Callable[[int, int], None] | None,
) -> dict[str, torch.Tensor]:
    """The tensors of the file, but for `ids`; rows in the order of documents."""
    batches = list(length_batches([len(ids) for ids in documents], encode_tokens))
    kept: dict[str, list[torch.Tensor]] = {}
    done, chunks = 0, []
    for batch in batches:
        step = model.record([documents[index] for index in batch])
        first = step.recorded[model.config.layers[0]].key_BCGD
        assert first is not None, "an MSA layer recorded no K and V"
        valid_BC = valid_chunks(step.lengths_B, first.shape[1], step.chunk_size)
        chunks += valid_BC.sum(1).tolist()
        for layer in model.config.layers:
            pooled = step.recorded[layer]
            assert pooled.hidden_BCF is not None and pooled.key_BCGD is not None and pooled.value_BCGD is not None
            content_C2GD = torch.stack([pooled.key_BCGD[valid_BC], pooled.value_BCGD[valid_BC]], dim=1)
            kept.setdefault(f"hidden.{layer}", []).append(pooled.hidden_BCF[valid_BC].cpu())
            kept.setdefault(f"content.{layer}", []).append(content_C2GD.cpu())
        done += len(batch)
        if on_progress is not None:
            on_progress(done, len(documents))
    order = torch.tensor([index for batch in batches for index in batch])
    counts = torch.tensor(chunks)
    rows_C = order.repeat_interleave(counts).argsort(stable=True)
    tensors = {name: torch.cat(parts)[rows_C] for name, parts in kept.items()}
    return tensors | {"chunks": counts[order.argsort()]}


def _write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            save_file(tensors, partial)
    except (OSError, SafetensorError) as error:
        raise MemspanError(f"cannot write {path}: {error}") from error
