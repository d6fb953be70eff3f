"""Banks of format 2: shown as the present format, and made it by the first that writes."""

from __future__ import annotations

from memspan.bank.database import Database
from memspan.bank.former_paths import take_paths, without_disk
from memspan.bank.schema import AS_FORMAT_3, FORMAT_3


def is_of_format_2(database: Database) -> bool:
    """Whether a catalog lacks what format 3 added."""
    columns = {row[1] for row in database.read("PRAGMA main.table_info(sources)")}
    return bool(columns) and "expires" not in columns


def follow_format(database: Database) -> None:
    """Show a catalog of format 2 as one of format 3; stop that once another process has made it one."""
    is_shown = database.value("SELECT 1 FROM temp.sqlite_schema WHERE name = 'sources'") is not None
    if is_of_format_2(database) != is_shown:
        database.connection.create_function("without_disk", 2, without_disk, deterministic=True)
        for table, query in AS_FORMAT_3.items():
            database.execute(f"DROP VIEW temp.{table}" if is_shown else f"CREATE TEMP VIEW {table} AS {query}")


def show_as_stored(database: Database) -> None:
    """Undo `follow_format`, so that the catalog can be changed."""
    for table in AS_FORMAT_3:
        database.execute(f"DROP VIEW IF EXISTS temp.{table}")


def add_format_3(database: Database) -> None:
    """Add what format 3 has; part of a transaction."""
    for statement in FORMAT_3.split(";")[:-1]:
        database.execute(statement)
    take_paths(database)
