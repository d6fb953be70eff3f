"""Named errors. Every message names the fault and the remedy."""

from __future__ import annotations


class MemspanError(Exception):
    """Base of every error a user of memspan can meet."""


class UnknownName(MemspanError, ValueError):
    """Nothing of this kind (a selector, a similarity, a file format ...) has this name; the message lists the names."""


class PluginError(MemspanError):
    """An entry of a registry lacks something, cannot be imported, or its name is taken."""


class UnsupportedBackbone(MemspanError):
    """The model cannot be served exactly by the memory attention; the message names the reason."""


class CheckpointError(MemspanError):
    """A checkpoint is missing, truncated, of another format, or cannot be fetched."""


class BankError(MemspanError):
    """A bank is missing, locked, damaged or of another format version."""


class BankMismatch(BankError):
    """A bank was encoded by another model, chunk size or template than the model that opens it."""


class BankBusy(BankError):
    """Another process writes the bank, or reads text that must be erased; the message names its pid."""


class ReadOnlyBank(BankError):
    """A bank that is opened by its URL was to be changed, or read whole; the message says where it is written."""


class StoreError(BankError):
    """Where a bank was published cannot be reached, read or written, or holds something that was not published."""


class BudgetError(MemspanError):
    """A memory budget is malformed, or too small for its load."""


class PlanError(MemspanError, ValueError):
    """The target, the machines or the price of a plan are none; the message names what can be given."""


class RankError(MemspanError):
    """A process of several that share a bank was lost, or they do not fit together."""


class BankClosed(BankError):
    """A bank, or a memory of it, was used after it was closed."""


class EmptyBank(BankError):
    """A question was asked of a bank, a namespace or a scope that holds no documents."""


class NotEncoded(EmptyBank):
    """A selector that finds by latents alone was asked of documents that are all not encoded yet."""


class UnknownDocument(BankError):
    """No live document has this id in this namespace."""


class DuplicateDocument(BankError):
    """A document of this external id is there already, and the caller wanted new ones only; or two documents given
    together, with other content each, have one id."""


class FilterError(MemspanError):
    """A filter is malformed, or names a field that no document has."""


class CorpusError(MemspanError):
    """A source cannot be read as documents at all (as opposed to one file of it, which is skipped and named)."""


class SyncRefused(MemspanError):
    """So much of a folder is gone that it may not be mounted; nothing is forgotten without being forced."""


class DataError(MemspanError):
    """Training data are malformed, empty, or not what a step needs; the message names the file and the line."""


class RecipeError(MemspanError):
    """A recipe is missing, is no YAML, or holds a key or value that does not belong there."""


class TrainingError(MemspanError):
    """A training run cannot begin, resume or go on; the message says what to change."""


class NotLearning(TrainingError):
    """A gate stopped a training run; the message says which, with its figures."""


class QuestionError(MemspanError):
    """A question is empty, or does not fit into the model's context."""


class AnswererError(MemspanError):
    """Another model, asked for an answer, gave none, or cannot be asked so; the message never holds its key."""


class AnswererRefused(AnswererError):
    """Another model refused what was passed on to it as it was sent: tools, a form of the answer, or calls of tools."""


class EvaluationError(MemspanError):
    """A measurement cannot be made, or not be continued, as asked."""
