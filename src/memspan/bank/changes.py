"""What changed in a namespace: the commits that changed documents, what they deleted, and what is new since one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from memspan.bank import clock
from memspan.bank.database import Database
from memspan.bank.schema import CHANGES, NAMESPACE_ID
from memspan.bank.scope import EVERYTHING, EXPIRED
from memspan.dates import date_key, normal_date
from memspan.errors import FilterError

_WHEN = "coalesce({0}.recorded_at, {0}.added_at)"
_OF_NAMESPACE = f"namespace_id = {NAMESPACE_ID}"


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a document since a moment.

    Attributes:
        kind: "added"; "changed" (its text, title, metadata or date); "deleted"; "expired".
        external_id: None: it was deleted, and `compact --secure` has erased which one it was.
        title: empty of one that was deleted.
        at: when, the last time (UTC).
    """

    kind: Literal["added", "changed", "deleted", "expired"]
    external_id: str | None
    title: str
    at: str


@dataclass(frozen=True, slots=True)
class ChangeReport:
    """What changed since a moment.

    Attributes:
        changes: in the order of their times; a document stands in it once.
        commit: the bank's last one. As `after_commit` it gives what changes from now on, all of it, once.
        more: whether there are more than were asked for.
    """

    changes: tuple[Change, ...]
    commit: int
    more: bool


def note_commit(database: Database, commit: int) -> str:
    """Keep when a commit is that changes sources: its moment, which is no other commit's. Part of its transaction."""
    if not _is_kept(database):
        for statement in CHANGES.split(";")[:-1]:
            database.execute(statement)
    if database.value("SELECT 1 FROM sqlite_sequence WHERE name = 'sources'") is None:
        database.execute("INSERT OR IGNORE INTO moments VALUES (0, ?)", (clock.moment(),))  # nothing was before
    last = database.read("SELECT commits, at FROM moments ORDER BY commits DESC LIMIT 1")
    if last and last[0][0] == commit:
        return last[0][1]
    moment = clock.distinct_moment(last[0][1] if last else "")
    database.execute("INSERT INTO moments VALUES (?, ?)", (commit, moment))
    return moment


def note_deletion(database: Database, namespace_id: int, external_id: str, commit: int, *, expired: bool) -> None:
    """Keep that a source was deleted, or deleted because it had expired. Part of a transaction."""
    database.execute("INSERT INTO deletions VALUES (?, ?, ?, ?)", (namespace_id, external_id, int(expired), commit))


def erase_names(database: Database) -> None:
    """Forget what the deleted sources were called; that there were some stays."""
    if _is_kept(database):
        with database.transaction():
            database.execute("UPDATE deletions SET external_id = NULL")


def drop_namespace(database: Database, number: int) -> None:
    """Forget what a namespace that is dropped held. Part of a transaction."""
    if _is_kept(database):
        database.execute("DELETE FROM deletions WHERE namespace_id = ?", (number,))


def changes_since(
    database: Database,
    commit: int,
    namespace: str,
    cut: slice,
    since: str | None = None,
    after_commit: int | None = None,
) -> ChangeReport:
    """A slice of what changed in a namespace, now that `commit` is the last; see `DocumentReader.changes`."""
    if (since is None) == (after_commit is None):
        raise TypeError("say since when: since= (a day, a moment, or a duration as 7d) or after_commit=, one of them")
    is_new, moment = _bound(database, commit, since, after_commit)
    parts = [
        "SELECT CASE WHEN EXISTS (SELECT 1 FROM sources w WHERE w.superseded_at IS NOT NULL "
        "AND w.namespace_id = s.namespace_id AND w.external_id = s.external_id "
        f"AND NOT {is_new(_WHEN.format('w'))}) THEN 'changed' ELSE 'added' END, s.external_id, s.title, "
        f"{_WHEN.format('s')} FROM sources s WHERE {EVERYTHING.sql} AND s.{_OF_NAMESPACE} "
        f"AND {is_new(_WHEN.format('s'))}",
        "SELECT 'expired', s.external_id, s.title, s.expires FROM sources s "
        f"WHERE {EXPIRED.sql} AND s.{_OF_NAMESPACE} AND s.expires >= ?2",
    ]
    if _is_kept(database):
        parts.append(
            "SELECT CASE WHEN g.expired THEN 'expired' ELSE 'deleted' END, g.external_id, '', max(m.at) "
            f"FROM deletions g JOIN moments m ON m.commits = g.commits WHERE g.{_OF_NAMESPACE} AND {is_new('m.at')} "
            "AND NOT EXISTS (SELECT 1 FROM sources s WHERE s.deleted_in IS NULL "
            "AND s.namespace_id = g.namespace_id AND s.external_id = g.external_id) "
            "GROUP BY coalesce(g.external_id, g.rowid)"
        )
    query = f"{' UNION ALL '.join(parts)} ORDER BY 4, 2 LIMIT ?4 OFFSET ?5"
    size = -1 if cut.stop is None else cut.stop - cut.start
    found = database.read(query, (namespace, moment, after_commit, size if size < 0 else size + 1, cut.start))
    more = 0 <= size < len(found)
    return ChangeReport(tuple(Change(*row) for row in (found[:size] if more else found)), commit, more)


def _bound(
    database: Database, commit: int, since: str | None, after_commit: int | None
) -> tuple[Callable[[str], str], str]:
    """SQL that is true of a moment after the bound (?2 the moment, ?3 the commit), and the moment."""
    if since is not None:
        return "({} >= ?2)".format, _moment(since)
    if not isinstance(after_commit, int) or isinstance(after_commit, bool) or not 0 <= after_commit <= commit:
        raise FilterError(f"after_commit is a number from 0 to {commit}, the bank's last commit, not {after_commit!r}")
    if after_commit == 0:
        return "(coalesce({}, ?3) IS NOT NULL)".format, ""
    first = database.value("SELECT min(commits) FROM moments") if _is_kept(database) else None
    if after_commit < commit and (first is None or after_commit + 1 < first):
        raise FilterError(f"this bank does not keep the changes after commit {after_commit}; give a date: since=")
    if first is None:
        return "({} IS NULL AND FALSE)".format, clock.moment()
    last = database.value("SELECT at FROM moments WHERE commits <= ? ORDER BY commits DESC LIMIT 1", (after_commit,))
    return "({} IN (SELECT at FROM moments WHERE commits > ?3))".format, last or clock.moment()


def _moment(since: str) -> str:
    """
    Raises:
        FilterError: it is no day, moment or duration.
    """
    try:
        return date_key(normal_date(since))
    except ValueError as error:
        try:
            return clock.moment_before(since)
        except ValueError:
            raise FilterError(f"since: {error}; or, for how long ago, as 7d or 12h") from error


def _is_kept(database: Database) -> bool:
    return database.value("SELECT 1 FROM main.sqlite_schema WHERE name = 'moments'") is not None
