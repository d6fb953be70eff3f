"""Random bytes for every file of a bank: a named error or the right latents; no crash, no hang, no code run."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import pickle
import shutil
import sqlite3
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    add_latents,
    bits,
    child_process,
    examples_here,
    latents_in,
    random_latents,
    tiny_manifest,
)
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from memspan.bank.add import import_documents
from memspan.bank.archive import export_bank, import_bank
from memspan.bank.bank import MemoryBank
from memspan.bank.catalog import DEFAULT_NAMESPACE
from memspan.bank.encode import manifest_of
from memspan.bank.lines import export_documents
from memspan.bank.locks import holders, writer_lock
from memspan.bank.scope import Scope
from memspan.bank.verify import verify
from memspan.errors import BankBusy, BankError, MemspanError
from memspan.model.convert import LoadedModel
from memspan.types import Document

MANIFEST = tiny_manifest(num_kv_heads=1, head_dim=2)
SECONDS = 30
NAMESPACES = (DEFAULT_NAMESPACE, "other")

Mutation = Callable[[bytes], bytes]
Latents = dict[int, tuple[bytes, bytes]]


def _fuzz(examples: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=examples_here(examples),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        phases=(Phase.explicit, Phase.generate),
    )


def _build(folder: Path) -> MemoryBank:
    bank = MemoryBank.create(folder, MANIFEST)
    for namespace in NAMESPACES:
        with bank.writer(namespace) as writer:
            first = Document("a", "alpha text", "Title", {"k": 1}, "2026-03-01")
            add_latents(writer, first, random_latents(MANIFEST, 2), random_latents(MANIFEST, 1))
            add_latents(writer, Document("gone", "beta"), random_latents(MANIFEST, 2))
            writer.commit()
            add_latents(writer, Document("b", "gamma text"), random_latents(MANIFEST, 2))
            writer.commit()
    bank.delete(["gone"])
    return bank


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank whose catalog holds everything."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("fuzz") / "bank"
    _build(folder).close()
    return folder


@pytest.fixture(scope="module")
def in_use(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a bank that was open: half of its catalog is in the write-ahead log."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("fuzz") / "bank"
    with closing(_build(folder)):
        copy = folder.with_name("copy")
        shutil.copytree(folder, copy)
    assert (copy / "catalog.sqlite-wal").stat().st_size > 1000
    return copy


@contextlib.contextmanager
def _copied(folder: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as parent:
        yield Path(shutil.copytree(folder, Path(parent) / "bank"))


def _latents(folder: Path) -> Latents:
    """The latents of every document of a bank, the deleted ones included."""
    with _copied(folder) as copy, closing(MemoryBank.open(copy)) as bank:
        found: Latents = {}
        for namespace in NAMESPACES:
            with bank.snapshot(namespace) as snapshot:
                for shard in snapshot.shards:
                    found |= {
                        number: bits(latents_in(shard, index)) for index, number in enumerate(shard.ids_N.tolist())
                    }
        return found


_whole = functools.cache(_latents)  # of a bank that no test changes: asked for in every example


# --- bytes ----------------------------------------------------------------------------------------------------------

places = st.integers(0, 2**20)
blocks = st.binary(min_size=1, max_size=64)


def _flip(place: int, mask: int) -> Mutation:
    def flip(content: bytes) -> bytes:
        at = place % max(len(content), 1)
        return content[:at] + bytes(byte ^ mask for byte in content[at : at + 1]) + content[at + 1 :]

    return flip


def _insert(place: int, block: bytes) -> Mutation:
    return lambda content: content[: (at := place % (len(content) + 1))] + block + content[at:]


def _overwrite(place: int, block: bytes) -> Mutation:
    return lambda content: content[: (at := place % (len(content) + 1))] + block + content[at + len(block) :]


def _truncate(place: int) -> Mutation:
    return lambda content: content[: place % (len(content) + 1)]


def _repeat(place: int, size: int) -> Mutation:
    return lambda content: content[: (at := place % (len(content) + 1)) + size] + content[at:]


flips = st.builds(_flip, places, st.integers(1, 255))
# Where a file's format is told, hits are rare.
early_flips = st.builds(_flip, st.integers(0, 200), st.integers(1, 255))
mutations = st.lists(
    st.one_of(
        flips,
        early_flips,
        st.builds(_insert, places, blocks),
        st.builds(_overwrite, places, blocks | st.just(b"\0" * 4096)),
        st.builds(_truncate, places),
        st.builds(_repeat, places, st.sampled_from([1, 8, 4096])),
        st.binary(max_size=200).map(lambda content: lambda _: content),
    ),
    min_size=1,
    max_size=3,
)


def _damage(path: Path, mutations: list[Mutation]) -> None:
    content = path.read_bytes()
    for mutate in mutations:
        content = mutate(content)
    path.write_bytes(content)


# --- a look at what came of it, in a process of its own -------------------------------------------------------------


def _forbid(*_: Any, **__: Any) -> Any:
    raise AssertionError("something that runs code was called")


def _in_child(look: Callable[[], None]) -> str:
    """Run a look in a forked process; what went wrong with it, or nothing. Loading of pickles is an error there."""

    def do(pipe: Connection) -> None:
        # Not `pickle.dumps`: the pipe needs it.
        for owner, name in (
            (pickle, "loads"),
            (pickle, "load"),
            (pickle, "Unpickler"),
            (torch, "load"),
            (os, "system"),
        ):
            setattr(owner, name, _forbid)
        try:
            look()
            pipe.send_bytes(b"done")
        except BaseException:
            pipe.send_bytes(traceback.format_exc().encode())
        finally:
            os._exit(0)

    with child_process(do) as (process, pipe):
        if not pipe.poll(SECONDS):
            return "it hangs"
        try:
            said = pipe.recv_bytes().decode()
        except EOFError:
            process.join(SECONDS)
            return f"it died of {process.exitcode}"
    return "" if said == "done" else said


def _exercise(folder: Path, whole: Latents) -> None:
    """Use a bank in every way. Named errors are fine, and so are latents that are right."""
    with contextlib.suppress(MemspanError), closing(MemoryBank.open(folder)) as bank:
        for namespace in NAMESPACES:
            _read(bank, namespace, whole)
            _try(lambda namespace=namespace: bank.catalog.search(namespace, "alpha text", 5))
            _try(lambda namespace=namespace: bank.catalog.page(namespace, 0, 99))
            scope = Scope.parse({"k": 1, "date": {">": "2020-01-01"}})
            _try(lambda namespace=namespace, scope=scope: bank.catalog.ids_in_scope(namespace, scope))
        _try(lambda: verify(bank))
        _try(lambda: bank.catalog.counts())
        _try(lambda: export_documents(bank, io.StringIO()))
        _try(lambda: export_bank(bank, folder / "exported.zip"))
        _try(lambda: bank.delete(["a"]))
        _try(lambda: bank.compact())
        for namespace in NAMESPACES:
            _read(bank, namespace, whole)


def _read(bank: MemoryBank, namespace: str, whole: Latents) -> None:
    with contextlib.suppress(MemspanError), bank.snapshot(namespace) as snapshot:
        for shard in snapshot.shards:
            for index, number in enumerate(shard.ids_N.tolist()):
                with contextlib.suppress(MemspanError):
                    assert bits(latents_in(shard, index)) == whole[number], "a wrong latent was read"


def _try(use: Callable[[], Any]) -> None:
    with contextlib.suppress(MemspanError):
        use()


def _assert_harmless(folder: Path, whole: Latents) -> None:
    assert not (found := _in_child(lambda: _exercise(folder, whole))), found


def _is_found(folder: Path) -> bool:
    """Whether anybody can know that a bank is damaged."""
    try:
        with closing(MemoryBank.open(folder)) as bank:
            return bool(verify(bank))
    except BankError:
        return True


# --- files ----------------------------------------------------------------------------------------------------------


@_fuzz(30)
@given(number=st.integers(0, 7), mutations=mutations)
def test_any_bytes_in_a_segment_are_refused_or_harmless_and_always_found(
    closed: Path, number: int, mutations: list[Mutation]
) -> None:
    whole = _whole(closed)
    with _copied(closed) as folder:
        path = sorted((folder / "segments").iterdir())[number]
        before = path.read_bytes()
        _damage(path, mutations)
        assert path.read_bytes() == before or _is_found(folder)
        _assert_harmless(folder, whole)


@_fuzz(50)
@given(mutations=mutations)
def test_any_bytes_in_the_catalog_are_refused_or_harmless(closed: Path, mutations: list[Mutation]) -> None:
    whole = _whole(closed)
    with _copied(closed) as folder:
        _damage(folder / "catalog.sqlite", mutations)
        _assert_harmless(folder, whole)


def test_a_schema_that_is_no_text_is_refused(closed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(closed, tmp_path / "bank"))
    content = (folder / "catalog.sqlite").read_bytes()
    damaged = content.replace(b"tabledocumentsdocuments", b"table\xffocumentsdocuments")
    assert damaged != content
    (folder / "catalog.sqlite").write_bytes(damaged)
    _assert_harmless(folder, _whole(closed))


@_fuzz(20)
@given(name=st.sampled_from(["catalog.sqlite-wal", "catalog.sqlite-shm"]), mutations=mutations)
def test_any_bytes_in_the_log_of_the_catalog_are_refused_or_harmless(
    in_use: Path, name: str, mutations: list[Mutation]
) -> None:
    whole = _whole(in_use)
    with _copied(in_use) as folder:
        _damage(folder / name, mutations)
        _assert_harmless(folder, whole)


@_fuzz(12)
@given(
    name=st.sampled_from(["readers/1-dead", "readers/junk", "writer.lock", "writer.pid"]),
    content=st.binary(max_size=40),
)
def test_any_bytes_in_the_files_of_readers_and_writers_change_nothing(closed: Path, name: str, content: bytes) -> None:
    whole = _whole(closed)
    with _copied(closed) as folder:
        (folder / "readers").mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
        assert _latents(folder) == whole
        with closing(MemoryBank.open(folder)) as bank:
            assert verify(bank) == []
            bank.delete(["a"])
            bank.compact(secure=True, timeout=0)
            assert verify(bank) == []


def test_a_writers_pid_that_is_no_text_does_not_hide_that_there_is_a_writer(closed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(closed, tmp_path / "bank"))
    with writer_lock(folder):
        (folder / "writer.pid").write_bytes(b"\xff\xfe")
        with pytest.raises(BankBusy), writer_lock(folder):
            pass


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk",
        b"\xff\xfe",
        b"\0" * 30,
        b"-1",
        b"1e9",
        b"--1",
        "²".encode(),
    ],
)
def test_a_live_reader_whose_file_holds_junk_is_waited_for(closed: Path, tmp_path: Path, content: bytes) -> None:
    folder = Path(shutil.copytree(closed, tmp_path / "bank"))
    reader, writer = MemoryBank.open(folder), MemoryBank.open(folder)
    with reader.snapshot() as snapshot:
        (path,) = [folder / "readers" / name for name in holders(folder)]
        path.write_bytes(content)
        with pytest.raises(BankBusy, match=str(os.getpid())):
            writer.compact(secure=True, timeout=0)
        for shard in snapshot.shards:
            assert all(bits(latents_in(shard, index)) for index in range(len(shard.ids_N)))
    writer.compact(secure=True, timeout=0)


@pytest.mark.parametrize("kind", ["folder", "file", "link to itself", "link to nowhere", "gone"])
@pytest.mark.parametrize(
    "name", ["catalog.sqlite", "catalog.sqlite-wal", "segments", "a segment", "readers", "writer.lock", "writer.pid"]
)
def test_something_else_in_the_place_of_a_file_is_refused_or_harmless(
    closed: Path, tmp_path: Path, name: str, kind: str
) -> None:
    whole = _whole(closed)
    folder = Path(shutil.copytree(closed, tmp_path / "bank"))
    path = sorted((folder / "segments").iterdir())[0] if name == "a segment" else folder / name
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "file":
        path.write_bytes(b"junk")
    elif kind.startswith("link"):
        path.symlink_to(path if kind == "link to itself" else tmp_path / "nowhere")
    _assert_harmless(folder, whole)


# --- values in the catalog ------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("../../../../etc/passwd"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
sql_values = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-2, 9),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=8),
    json_values.map(json.dumps),
    st.just("x" * 5000),
)


def _set(folder: Path, statement: str, *values: Any) -> bool:
    """Change the catalog behind the bank's back, where SQLite lets one."""
    with closing(sqlite3.connect(folder / "catalog.sqlite")) as db:
        db.execute("PRAGMA ignore_check_constraints = ON")
        try:
            db.execute(statement, values)
            db.commit()
        except (sqlite3.Error, UnicodeEncodeError):
            return False
    return True


@_fuzz(60)
@given(key=st.sampled_from(sorted(tiny_manifest().__slots__)), value=json_values)
@example(key="head_dim", value=None)
@example(key="format_version", value=2)
@example(key="format_version", value=4)
@example(key="format_version", value=True)
@example(key="msa_layers", value=[3, 1])
@example(key="msa_layers", value=[[1]])
@example(key="head_dim", value=10**30)
def test_any_value_in_the_manifest_is_refused_or_harmless(closed: Path, key: str, value: Any) -> None:
    whole = _whole(closed)
    with _copied(closed) as folder:
        if _set(folder, "UPDATE manifest SET value = ? WHERE key = ?", json.dumps(value), key):
            _assert_harmless(folder, whole)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE manifest SET value = '{}' WHERE key = 'head_dim'",
        "UPDATE manifest SET value = replace(hex(zeroblob(50000)), '0', '[') WHERE key = 'backbone'",
        "UPDATE manifest SET key = x'ff' WHERE key = 'backbone'",
    ],
)
def test_a_strange_manifest_is_refused_or_harmless(closed: Path, statement: str) -> None:
    with _copied(closed) as folder:
        _set(folder, statement)  # if SQLite lets us
        _assert_harmless(folder, _whole(closed))


COLUMNS = [
    *(("clock", column) for column in ("commits",)),
    *(("namespaces", column) for column in ("id", "name")),
    *(
        ("segments", column)
        for column in ("id", "namespace_id", "name", "documents", "rows", "index_crc32", "keys_bytes")
    ),
    *(("segments", column) for column in ("keys_sha256", "content_bytes", "content_sha256", "state", "retired_in")),
    *(("sources", column) for column in ("id", "namespace_id", "external_id", "title", "metadata", "date", "added_at")),
    *(("sources", column) for column in ("content_hash", "text_hash", "deleted_in")),
    *(("sources", column) for column in ("recorded_at", "superseded_at", "version_of", "expires", "pinned")),
    *(("texts", column) for column in ("source_id", "text")),
    *(("documents", column) for column in ("id", "source_id", "span_start", "span_end", "tokens", "segment_id")),
    *(("documents", column) for column in ("first_row", "rows", "deleted_in")),
    *(("sqlite_sequence", column) for column in ("name", "seq")),
    *(("words_1_data", column) for column in ("id", "block")),
    *(("words_1_idx", column) for column in ("segid", "term", "pgno")),
    *(("words_1_docsize", column) for column in ("id", "sz")),
    *(("words_1_config", column) for column in ("k", "v")),
]


@_fuzz(80)
@given(column=st.sampled_from(COLUMNS), row=st.integers(0, 5), value=sql_values)
@example(column=("segments", "name"), row=0, value="x" * 5000)
@example(column=("clock", "commits"), row=0, value="abc")
def test_any_value_in_the_catalog_is_refused_or_harmless(
    closed: Path, column: tuple[str, str], row: int, value: Any
) -> None:
    table, name = column
    key = {"words_1_idx": "segid", "words_1_config": "k"}.get(table, "rowid")
    whole = _whole(closed)
    with _copied(closed) as folder:
        where = f"{key} = (SELECT {key} FROM {table} ORDER BY {key} LIMIT 1 OFFSET {row})"
        if _set(folder, f"UPDATE {table} SET {name} = ? WHERE {where}", value):
            _assert_harmless(folder, whole)


STRANGE = [
    "UPDATE clock SET commits = 'abc'",
    "UPDATE sources SET title = x'fffe' WHERE id = 1",
    "UPDATE texts SET text = x'fffe' WHERE source_id = 1",
    "UPDATE sources SET metadata = '5' WHERE id = 1",
    "UPDATE sources SET metadata = replace(hex(zeroblob(50000)), '0', '[') WHERE id = 1",
    "UPDATE segments SET keys_bytes = 'abc' WHERE id = 1",
    "UPDATE segments SET keys_bytes = 9e999 WHERE id = 1",
    "UPDATE segments SET name = hex(zeroblob(3000)) WHERE id = 1",
    "UPDATE sqlite_sequence SET seq = 'abc' WHERE name = 'documents'",
    "UPDATE namespaces SET name = x'fffe' WHERE id = 1",
    "UPDATE documents SET id = -1 WHERE id = 4",
    "UPDATE words_1_data SET id = -1 WHERE id = 10",
]


@pytest.mark.parametrize("statement", STRANGE)
def test_a_strange_value_in_the_catalog_is_refused_or_harmless(closed: Path, statement: str) -> None:
    with _copied(closed) as folder:
        _set(folder, statement)
        _assert_harmless(folder, _whole(closed))


# --- what is exported -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(closed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "bank.zip"
    with closing(MemoryBank.open(closed)) as bank:
        export_bank(bank, path)
    return path


def _import(path: Path, folder: Path, whole: Latents) -> None:
    try:
        import_bank(path, folder, MANIFEST.check_same).close()
    except BankError:
        assert not MemoryBank.exists(folder)
        assert {each.name for each in folder.rglob("*")} <= {"writer.lock", "writer.pid"}
    else:
        found = _latents(folder)
        assert found.keys() >= whole.keys() - {3, 7}, "those of the deleted need not be exported"
        assert found.items() <= whole.items()


def _assert_imports_harmlessly(content: bytes, whole: Latents) -> None:
    with tempfile.TemporaryDirectory() as parent:
        path = Path(parent) / "bank.zip"
        path.write_bytes(content)
        assert not (found := _in_child(lambda: _import(path, Path(parent) / "moved", whole))), found
        assert {each.name for each in Path(parent).iterdir()} <= {"bank.zip", "moved"}


# The directory of the archive stands at its end.
late_flips = st.builds(lambda place, mask: _flip(-1 - place, mask), st.integers(0, 700), st.integers(1, 255))


def _mutated(file: Path, mutations: list[Mutation]) -> bytes:
    return functools.reduce(lambda content, mutate: mutate(content), mutations, file.read_bytes())


@_fuzz(30)
@given(mutations=mutations)
def test_any_bytes_in_an_exported_bank_are_refused_or_harmless(
    closed: Path, exported: Path, mutations: list[Mutation]
) -> None:
    _assert_imports_harmlessly(_mutated(exported, mutations), _whole(closed))


@_fuzz(80)
@given(mutations=st.lists(late_flips, min_size=1, max_size=2))
@example(mutations=[lambda content: content.replace(b"PK\1\2\x14\3\x14\0\0\0\0\0", b"PK\1\2\x14\3\x14\0\0\0\x08\0")])
def test_any_bytes_in_the_directory_of_an_exported_bank_are_refused_or_harmless(
    closed: Path, exported: Path, mutations: list[Mutation]
) -> None:
    _assert_imports_harmlessly(_mutated(exported, mutations), _whole(closed))


def _import_lines(folder: Path, loaded: LoadedModel, content: str) -> None:
    with closing(MemoryBank.create(folder, manifest_of(loaded))) as bank:
        _try(lambda: import_documents(bank, loaded, io.StringIO(content)))
        assert verify(bank) == []


fields = st.sampled_from(["namespace", "external_id", "title", "text", "date", "metadata"])
LINE = {"namespace": "a", "external_id": "x", "title": "T", "text": "text", "date": "2026-03-01", "metadata": {"k": 1}}


@_fuzz(20)
@given(mutations=mutations, field=fields.filter(lambda name: name != "namespace"), value=json_values)
def test_any_line_of_exported_documents_is_refused_or_harmless(
    loaded: LoadedModel, mutations: list[Mutation], field: str, value: Any
) -> None:
    content = "".join(json.dumps({**LINE, **change}) + "\n" for change in ({}, {field: value}))
    damaged = content.encode()
    for mutate in mutations:
        damaged = mutate(damaged)
    with tempfile.TemporaryDirectory() as parent:
        for number, text in enumerate((content, damaged.decode(errors="replace"))):
            assert not (
                found := _in_child(
                    lambda text=text, number=number: _import_lines(Path(parent) / f"{number}", loaded, text)
                )
            ), found


# --- code -----------------------------------------------------------------------------------------------------------


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_no_file_of_a_bank_is_ever_unpickled(closed: Path, exported: Path, tmp_path: Path) -> None:
    blasted = tmp_path / "blasted"
    checkpoint = io.BytesIO()
    torch.save({"layer_1": _Bomb(blasted)}, checkpoint)
    whole = _whole(closed)
    for bomb in (pickle.dumps(_Bomb(blasted)), checkpoint.getvalue()):
        with _copied(closed) as folder:
            names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
        for name in [*names, Path("readers/1-bomb"), Path("catalog.sqlite-wal"), Path("segments/x.keys.safetensors")]:
            with _copied(closed) as folder:
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes(bomb)
                _assert_harmless(folder, whole)
        _assert_imports_harmlessly(bomb, whole)
    assert not blasted.exists()
    with pytest.raises(FileExistsError):  # it would have gone off
        blasted.mkdir()
        pickle.loads(pickle.dumps(_Bomb(blasted)))


def test_a_catalog_with_a_trigger_runs_no_library(closed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(closed, tmp_path / "bank"))
    trigger = "CREATE TRIGGER evil AFTER UPDATE ON clock BEGIN SELECT load_extension('/nowhere/evil'); END"
    assert _set(folder, trigger)
    with (
        closing(MemoryBank.open(folder)) as bank,
        pytest.raises(BankError, match=r"not authorized|no such function|unsafe use"),
    ):
        bank.delete(["a"])
    assert _latents(folder) == _whole(closed)
