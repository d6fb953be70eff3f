"""Constrained decoding of document ids: the model can name what was routed to in this round, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedTokenizerBase

from memspan.errors import MemspanError
from memspan.ops.transfer import to_device
from memspan.text.rounds import RoundProtocol, id_text

_ID_PIECE = re.compile(r"[\[\]0-9]+")
_GROUP = re.compile(r"\[[0-9]+\]")


class Guide(Protocol):
    """Steers the decoding of one question, token by token."""

    def mask(self, logits_V: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
        """The logits of the next token after `ids`, -inf where it may not be written."""
        ...

    def finished(self, ids: Sequence[int]) -> bool:
        """Whether `ids` are complete."""
        ...


class FreeIds:
    """Lets the model write what it wants until it closes the round; what it wrote is parsed afterwards."""

    def __init__(self, protocol: RoundProtocol) -> None:
        self._protocol = protocol

    def mask(self, logits_V: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
        return logits_V

    def finished(self, ids: Sequence[int]) -> bool:
        return self._protocol.ended(ids)


class IdTrie:
    """The documents that may be named, each once: a trie over the characters of their ids, walked by tokens.

    Over characters, not over one token sequence per id: a tokenizer may join the border of two ids ("][" is one token
    of Qwen's), so the same ids have several spellings, and the model was trained on one of them.
    """

    def __init__(self, document_ids: Collection[int], at_most: int) -> None:
        self._forms = {id_text(document_id) for document_id in document_ids}
        self._prefixes = {form[:length] for form in self._forms for length in range(1, len(form) + 1)}
        self._at_most = at_most

    def accepts(self, text: str) -> bool:
        """Whether `text` is the beginning of a list of distinct ids, no longer than allowed."""
        groups = _GROUP.findall(text)
        rest = text[sum(map(len, groups)) :]
        if not text.startswith("".join(groups)) or len(set(groups)) < len(groups) or not self._forms.issuperset(groups):
            return False
        if not rest:
            return len(groups) <= self._at_most
        left = rest in self._prefixes and any(f.startswith(rest) for f in self._forms.difference(groups))
        return left and len(groups) < self._at_most


class RoutedIds(FreeIds):
    """Lets the model write ids of an `IdTrie` and the marker that closes a round, or the end of retrieval alone.

    Args:
        allowed: the ids that may be named; asked at the first token, when the prefill has routed.
        at_most: ids in this round.

    Raises:
        MemspanError: the tokenizer cannot write ids character by character.
    """

    def __init__(self, protocol: RoundProtocol, allowed: Callable[[], Collection[int]], at_most: int) -> None:
        super().__init__(protocol)
        self._allowed, self._at_most = allowed, at_most
        self._pieces = id_pieces(protocol.template.tokenizer)
        self._trie: IdTrie | None = None

    def mask(self, logits_V: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
        allowed = to_device(torch.tensor(sorted(self.next_tokens(ids))), logits_V.device)
        return torch.full_like(logits_V, float("-inf")).index_copy(0, allowed, logits_V.index_select(0, allowed))

    def next_tokens(self, ids: Sequence[int]) -> set[int]:
        """The tokens that may follow. Never empty before the round is closed."""
        if self._trie is None:
            self._trie = IdTrie(self._allowed(), self._at_most)
        round_end, retrieval_end = self._protocol.round_end, self._protocol.retrieval_end
        num_id_tokens = next((place for place, token in enumerate(ids) if token not in self._pieces), len(ids))
        started = tuple(ids[num_id_tokens:])
        if started:  # in the middle of a marker of several tokens
            markers = [round_end] if num_id_tokens else [retrieval_end]
            return {m[len(started)] for m in markers if m[: len(started)] == started and len(m) > len(started)}
        text = "".join(self._pieces[token] for token in ids)
        tokens = {token for token, piece in self._pieces.items() if self._trie.accepts(text + piece)}
        if not text:
            tokens.add(retrieval_end[0])
        elif text.endswith("]"):
            tokens.add(round_end[0])
        return tokens


_pieces_of: WeakKeyDictionary[PreTrainedTokenizerBase, dict[int, str]] = WeakKeyDictionary()


def id_pieces(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The tokens made of brackets and digits alone, with what they write.

    Raises:
        MemspanError: one of these characters is no token by itself.
    """
    if tokenizer not in _pieces_of:
        pieces = {index: piece for piece, index in tokenizer.get_vocab().items() if _ID_PIECE.fullmatch(piece)}
        missing = set("[]0123456789") - set(pieces.values())
        if missing:
            raise MemspanError(
                f"this tokenizer has no token for {' '.join(sorted(missing))} alone, so ids cannot be constrained; "
                "ask with constrain_ids=False"
            )
        _pieces_of[tokenizer] = pieces
    return _pieces_of[tokenizer]
