"""Prompt lookup: an answer copies from its context, so what followed the same tokens before is tried as a draft.

A draft is checked by one forward over all of its tokens, and kept as far as the model writes the same. So the answer is
what it would be token by token (but for ties of rounded logits: a product over several rows may round otherwise).
Source: the method known as prompt lookup decoding, a kind of speculative decoding without a draft model.
"""

from __future__ import annotations

from collections.abc import Sequence

# Tokens drafted at a time, at most: a forward over so many costs little more than one over one token (docs/LOG.md).
MAX_DRAFT = 5
# Tokens that must have stood before, longest first.
_MATCHED = (3, 2, 1)


class PromptLookup:
    """Drafts for one question.

    Attributes:
        num_drafted, num_accepted: tokens so far.
    """

    def __init__(self, ids: Sequence[int], max_draft: int = MAX_DRAFT) -> None:
        """
        Args:
            ids: the context; what is written is added by `extend`.
        """
        self.num_drafted = self.num_accepted = 0
        self._ids: list[int] = []
        self._max_draft = self._length = max_draft
        self._end_of: dict[tuple[int, ...], int] = {}
        self._newest: list[tuple[tuple[int, ...], int]] = []
        self.extend(ids)

    def extend(self, ids: Sequence[int]) -> None:
        """Add tokens at the end."""
        for token in ids:
            # What ends here is found from the next token on: it must not find itself.
            self._end_of.update(self._newest)
            self._ids.append(token)
            end = len(self._ids)
            self._newest = [(tuple(self._ids[end - size : end]), end) for size in _MATCHED if size <= end]

    def draft(self, at_most: int) -> list[int]:
        """What followed the last place that reads like the end; empty where there is none."""
        for words, _ in self._newest:
            if words in self._end_of:
                begin = self._end_of[words]
                return self._ids[begin : begin + min(self._length, at_most)]
        return []

    def accepted(self, num_accepted: int, num_drafted: int) -> None:
        """Learn how much of a draft was kept: drafts are longer where they succeed, and shorter where they fail."""
        self.num_drafted += num_drafted
        self.num_accepted += num_accepted
        if not num_drafted:
            return
        if num_accepted == num_drafted:
            self._length = min(2 * self._length, self._max_draft)
        elif not num_accepted:
            self._length = max(self._length // 2, 1)
