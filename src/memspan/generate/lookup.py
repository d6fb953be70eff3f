"""Prompt lookup: an answer copies from its context, so what followed the same tokens before is tried as a draft.

A draft is checked by one forward over all of its tokens, and kept as far as the model writes the same. So the answer is
what it would be token by token (but for ties of rounded logits: a product over several rows may round otherwise).
Source: the method known as prompt lookup decoding, a kind of speculative decoding without a draft model.
"""

from __future__ import annotations

from collections.abc import Sequence

# Tokens drafted at a time, at most: further ones are seldom kept (docs/LOG.md).
MAX_DRAFT = 5
# Tokens that must have stood before, longest first.
_MATCHED = (3, 2, 1)
# Before a draft was compared: as if so many tokens had been, and so many of them kept.
_SEEN_BEFORE, _KEPT_BEFORE = 3.0, 2.0
# What an earlier draft counts beside the next one: a text repeats itself in places.
_FADE = 0.9


class PromptLookup:
    """Drafts for one question.

    Attributes:
        num_drafted, num_accepted: tokens so far.
        kept: probability that a drafted token is kept where those before it are, judged by the newest drafts.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        """
        Args:
            ids: the context; what is written is added by `extend`.
        """
        self.num_drafted = self.num_accepted = 0
        self._seen, self._kept = _SEEN_BEFORE, _KEPT_BEFORE
        self._ids: list[int] = []
        self._end_of: dict[tuple[int, ...], int] = {}
        self._newest: list[tuple[tuple[int, ...], int]] = []
        self.extend(ids)

    @property
    def kept(self) -> float:
        return self._kept / self._seen

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
                return self._ids[begin : begin + min(MAX_DRAFT, at_most)]
        return []

    def accepted(self, num_accepted: int, num_drafted: int) -> None:
        """Learn how much of a draft was kept; what follows the first token that was not says nothing."""
        self.num_drafted += num_drafted
        self.num_accepted += num_accepted
        self._kept = _FADE * self._kept + num_accepted
        self._seen = _FADE * self._seen + min(num_accepted + 1, num_drafted)
