"""The full-text index: one FTS5 table per namespace, so that what is written in one never changes another's scores.

The tables are contentless: terms are made in Python (`memspan.text.terms`), the text is stored once. A table's last
column holds nothing; its name says by which rules the terms were made.
"""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
from collections import defaultdict
from collections.abc import Generator, Iterable
from itertools import zip_longest

from memspan.bank.database import Database
from memspan.bank.scope import Scope
from memspan.bank.stored import of_both
from memspan.errors import BankError
from memspan.text.languages import LANGUAGES
from memspan.text.terms import content_words, index_terms, language_mark, query_terms, rules

# Documents that one question scores, about (1.4 us each); measured by benchmarks/bank.py.
_MOST_SCORED = 40_000
_LEAST_IDF = 1e-6
# A written form counts little beside its stem (measured, see docs/LOG.md): it decides between equals.
_RANK = "bm25(1.0, 0.05)"
_FIRST_COLUMNS = ["words"]
"""Of an index from before its rules were recorded: words as they are written, stemmed as English by SQLite."""
_INSERT = "(rowid, words, forms) VALUES (?, ?, ?)"
# A language of the bank has at least this share of the documents that the most frequent one has, both counted up to a
# limit.
_LEAST_SHARE, _MOST_COUNTED = 0.01, 1000


class WordIndex:
    """The index of one namespace, by the texts of its live documents; or of the documents of former versions."""

    def __init__(self, database: Database, namespace_id: int, *, past: bool = False) -> None:
        """
        Args:
            past: of former versions. There is such an index only where there was one of them.
        """
        self._db = database
        self._table = f"{'past_words' if past else 'words'}_{namespace_id:d}"

    @property
    def exists(self) -> bool:
        return self._db.value("SELECT 1 FROM main.sqlite_schema WHERE name = ?", (self._table,)) is not None

    def create(self) -> None:
        self._db.execute(f"CREATE VIRTUAL TABLE {self._table} USING fts5 ({_options()})")
        self._db.execute(f"INSERT INTO {self._table} ({self._table}, rank) VALUES ('rank', '{_RANK}')")

    def drop(self) -> None:
        if self._db.value("SELECT 1 FROM sqlite_schema WHERE name = ?", (f"{self._table}_config",)):
            # Without its version a table cannot even be dropped.
            self._db.execute(f"INSERT OR REPLACE INTO {self._table}_config VALUES ('version', 4)")
        self._db.execute(f"DROP TABLE IF EXISTS {self._table}")
        for part in ("data", "idx", "docsize", "config"):  # what is left of one that lost its head
            self._db.execute(f"DROP TABLE IF EXISTS {self._table}_{part}")

    def insert(self, document_id: int, text: str) -> None:
        self._db.execute(f"INSERT INTO {self._table} {_INSERT}", (document_id, *_terms(text)))

    def remove(self, document_id: int, text: str) -> None:
        """Take a document out. A contentless index wants the words back for it: `text` is what was inserted."""
        self._db.execute(
            f"INSERT INTO {self._table} ({self._table}, rowid, words, forms) VALUES ('delete', ?, ?, ?)",
            (document_id, *_terms(text)),
        )

    def _columns(self) -> list[str]:
        return [name for (name,) in self._db.read("SELECT name FROM pragma_table_info(?)", (self._table,))]

    def rebuild(self, texts: Iterable[tuple[int, str]]) -> None:
        """Make the index anew, from the ids and texts of all live documents. Nothing of the old one stays in it."""
        self.drop()
        self.create()
        for document_id, text in texts:
            self.insert(document_id, text)

    def search(self, question: str, limit: int, scope: Scope | None) -> list[tuple[int, float]]:
        """BM25 search: ids and scores, best first; higher is better. Any text is a valid question. None: no scope.

        Every document is scored that holds one of the rarer words of the question, by all of its words: as many words,
        the rarest first, as keep that to about `_MOST_SCORED` documents. So in a large bank one that holds only the
        most frequent words is passed over, unless there is no other in the scope.
        """
        rare, common = self._by_frequency(self._query_terms(question))
        if not rare:
            return []
        any_rare = " OR ".join(rare)
        if not common:
            return self._best([any_rare], limit, scope)
        any_common = " OR ".join(common)
        both = f"({any_rare}) AND ({any_common})"
        # `both` ranks the documents that hold both kinds of words; `any_rare` is right about the others and too low
        # for those: the larger score is the true one.
        found = self._best([both, any_rare], limit, scope)
        return found or self._best([f"{any_rare} OR {any_common}"], limit, scope)

    def search_as_in(self, other: WordIndex, question: str, scope: Scope) -> list[tuple[int, float]]:
        """The documents of this index that hold a word of a question, with the BM25 scores of `other`'s frequencies.

        So former versions are ranked among what lives. By their own frequencies, a word that each of them has would
        weigh nothing.
        """
        terms = sorted({*self._query_terms(question), *other._query_terms(question)})
        here, there = self._frequency(terms), other._frequency(terms)
        total, total_there = self._num_documents(), other._num_documents()
        scores: defaultdict[int, float] = defaultdict(float)
        for term, number in here.items():
            factor = _idf(total_there, there.get(term, 0)) / _idf(total, number)
            query = f"SELECT rowid, -rank FROM {self._table} WHERE {self._table} MATCH ? {self._within(scope)}"
            for document_id, score in self._db.rows(query, (term, *scope.values * 2)):
                scores[document_id] += score * factor
        return sorted(scores.items(), key=lambda item: (-item[1], item[0]))

    def naming(self, name: str, scope: Scope) -> list[int]:
        """The ids of the documents of a scope that hold every word of a name, in one of its forms."""
        words = [self._query_terms(word) for word in content_words(name)]
        if not words:
            return []
        match = " AND ".join(f"({' OR '.join(forms)})" for forms in words)
        query = f"SELECT rowid FROM {self._table} WHERE {self._table} MATCH ? {self._within(scope)}"
        return [number for (number,) in self._db.rows(query, (match, *scope.values * 2))]

    def _num_documents(self) -> int:
        return self._db.value(f"SELECT count(*) FROM {self._table}_docsize")

    def _frequency(self, terms: list[str]) -> dict[str, int]:
        """How many documents hold each term, of those that some do."""
        count = f"SELECT value, (SELECT count(*) FROM {self._table} WHERE {self._table} MATCH value) FROM json_each(?)"
        return {term: number for term, number in self._db.read(count, (json.dumps(terms),)) if number}

    def _within(self, scope: Scope) -> str:
        """The documents of a scope, as a further condition of a query."""
        query = of_both(f"SELECT 1 FROM {{parts}} WHERE d.id = {self._table}.rowid AND {scope.sql}", scope)
        return f"AND EXISTS ({query})"

    def _query_terms(self, question: str) -> list[str]:
        """Quoted, as FTS5 reads no syntax in them then, for OR: hardly any document holds every word of a question."""
        return ['"' + term.replace('"', '""') + '"' for term in self._terms_of(question)]

    def _terms_of(self, question: str) -> list[str]:
        if self._columns() == _FIRST_COLUMNS:
            return content_words(question)
        marks = {language: f'"{language_mark(language)}"' for language in LANGUAGES}
        count = (
            f"SELECT value, (SELECT count(*) FROM (SELECT 1 FROM {self._table} WHERE {self._table} MATCH value "
            f"LIMIT {_MOST_COUNTED})) FROM json_each(?)"
        )
        counts = dict(self._db.read(count, (json.dumps(list(marks.values())),)))
        least = max(counts.values()) * _LEAST_SHARE
        return query_terms(question, [language for language, mark in marks.items() if counts[mark] > least])

    def _by_frequency(self, terms: list[str]) -> tuple[list[str], list[str]]:
        """The terms that some document holds: the rarest, as many as can be scored in time, and the others.

        Where even the rarest is too frequent it is scored all the same.
        """
        frequency = self._frequency(terms)
        rare, common, total = [], [], 0
        for term in sorted(frequency, key=frequency.__getitem__):
            total += frequency[term]
            (rare if not rare or total <= _MOST_SCORED else common).append(term)
        return rare, common

    def _best(self, matches: list[str], limit: int, scope: Scope | None) -> list[tuple[int, float]]:
        """The best documents of some queries together, each by its highest score."""
        table, given = self._table, () if scope is None else scope.values * 2
        within = "" if scope is None else self._within(scope)
        # Ordered by rowid, too: that is faster here than by rank alone.
        best = (
            f"SELECT * FROM (SELECT rowid AS id, -rank AS score FROM {table} WHERE {table} MATCH ? {within} "
            "ORDER BY rank, rowid LIMIT ?)"
        )
        query = f"SELECT id, max(score) FROM ({' UNION ALL '.join([best] * len(matches))}) GROUP BY id "
        values = [value for match in matches for value in (match, *given, limit)]
        return self._db.read(f"{query} ORDER BY 2 DESC, id LIMIT ?", (*values, limit))

    def differs(self, texts: Iterable[tuple[int, str]]) -> bool:
        """Whether the index is not the one that the ids and texts of all live documents give.

        Builds a second index in temporary space and compares the two: every entry, every word looked up, the lengths of
        documents and their average, the weights of the columns. Of an index of other rules only that it can be read,
        and holds these documents.
        Call it inside a snapshot.
        """
        made: list[str] = []
        try:
            if self._columns()[2:] != [rules()]:
                return self._holds_others([document_id for document_id, _ in texts])
            if self._db.value(f"SELECT v FROM {self._table}_config WHERE k = 'rank'") != _RANK:
                return True
            for name, module in (
                ("expected_words", f"fts5 ({_options()})"),
                ("expected_entries", "fts5vocab (temp, expected_words, 'instance')"),
                ("expected_terms", "fts5vocab (temp, expected_words, 'row')"),
                ("found_entries", f"fts5vocab (main, {self._table}, 'instance')"),
                ("found_terms", f"fts5vocab (main, {self._table}, 'row')"),
            ):
                self._db.execute(f"CREATE VIRTUAL TABLE temp.{name} USING {module}")
                made.append(name)
            self._db.execute_many(
                f"INSERT INTO temp.expected_words {_INSERT}",
                ((document_id, *_terms(text)) for document_id, text in texts),
            )
            with (
                contextlib.closing(self._contents("found", self._table)) as found,
                contextlib.closing(self._contents("expected", "expected_words")) as expected,
            ):
                return any(one != other for one, other in zip_longest(found, expected))
        except (BankError, sqlite3.Error, ValueError):  # it cannot even be read
            return True
        finally:
            for name in reversed(made):
                self._db.execute(f"DROP TABLE temp.{name}")

    def _holds_others(self, ids: list[int]) -> bool:
        """Whether an index cannot be read, or is of other documents."""
        self._db.read(f"SELECT count(*) FROM {self._table} WHERE {self._table} MATCH 'a*'")
        found = self._db.read(f"SELECT id FROM {self._table}_docsize ORDER BY id")
        return [document_id for (document_id,) in found] != sorted(ids)

    def _contents(self, which: str, table: str) -> Generator[tuple, None, None]:
        """All that one of the two indexes holds, in order."""
        yield from self._db.rows(f"SELECT term, doc, col, offset FROM temp.{which}_entries")
        yield from self._db.rows(f"SELECT id, sz FROM {table}_docsize ORDER BY id")
        # Number and total length of documents, for BM25; of an emptied index they are zeros, of a new one nothing.
        yield from (
            (bytes(block).rstrip(b"\0"),) for (block,) in self._db.rows(f"SELECT block FROM {table}_data WHERE id = 1")
        )
        # Each word by the index's own directory, which reading all entries in order does not need.
        yield from self._db.rows(
            f"SELECT e.term, f.doc, f.cnt FROM temp.expected_terms e LEFT JOIN temp.{which}_terms f ON f.term = e.term"
        )


def outdated_namespaces(database: Database) -> list[str]:
    """The namespaces whose indexes were made by other rules than those of this process.

    They are searched all the same; before they are changed they are to be rebuilt, as words that are taken out must be
    those that were put in.
    """
    query = (
        "SELECT n.name FROM namespaces n JOIN main.sqlite_schema t ON t.name = 'words_' || n.id "
        "WHERE instr(t.sql, ?) = 0 ORDER BY n.id"
    )
    return [name for (name,) in database.read(query, (f'"{rules()}"',))]


def _options() -> str:
    # What is no letter or digit of ASCII is part of a term, too: terms come joined by spaces, and are not cut again.
    tokenize = "ascii tokenchars ''!#$%&()*+,-./:;<=>?@[\\]^_`{|}~''"
    return f"words, forms, \"{rules()}\" UNINDEXED, content = '', tokenize = '{tokenize}'"


def _terms(text: str) -> tuple[str, str]:
    """The terms of a text as the index stores them."""
    terms = index_terms(text)
    return " ".join(terms.words), " ".join(terms.forms)


def _idf(num_documents: int, frequency: int) -> float:
    """The weight that FTS5 gives a word."""
    return max(math.log((num_documents - frequency + 0.5) / (frequency + 0.5)), _LEAST_IDF)
