"""What people try in their first hour, and the remedy that they read then."""

from __future__ import annotations

import ast
import errno
import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from command import failed, memspan
from typer.main import get_command
from typer.testing import CliRunner

import memspan as package
from memspan.cli import app
from memspan.cli.app import known_errors
from memspan.cli.listing import OTHER_NAMES
from memspan.places import quoted

SOURCE = Path(package.__file__).parent
COMMAND = re.compile(r"\bmemspan [a-z]+(?: [^;,.()\n]*)? $")


def wrong_usage(*arguments: object) -> str:
    """Run a command that must end as wrong usage; return its message in one line, without the frame."""
    done = memspan(*arguments)
    assert (done.code, done.out) == (2, "")
    return " ".join(re.sub("[│╭╮╰╯─]", " ", done.err).split())


# --- names and options ------------------------------------------------------------------------------------------------


def test_the_version_is_told_by_an_option() -> None:
    done = memspan("--version")
    assert (done.code, done.out) == (0, f"memspan {package.__version__}\n")


@pytest.mark.parametrize("command", [(), ("add",), ("keys", "list"), ("data", "mix"), ("eval",)])
def test_the_short_option_for_help_is_known_everywhere(command: tuple[str, ...]) -> None:
    assert memspan(*command, "-h").out == memspan(*command, "--help").out != ""


@pytest.mark.parametrize(("given", "meant"), OTHER_NAMES.items())
def test_a_name_of_another_tool_leads_to_the_command(given: str, meant: str) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert given not in commands
    assert meant.split()[0] in commands or meant == "--version"
    for written in (given, given.title()):
        assert f"Did you mean '{meant}'?" in wrong_usage(written, "my.bank")


def test_other_commands_that_do_not_exist_are_named() -> None:
    assert "Did you mean '--help', or 'COMMAND --help'?" in wrong_usage("help", "add")
    assert "Did you mean 'summarize'?" in wrong_usage("sumarize")
    assert wrong_usage("qqq").endswith("No such command 'qqq'.")


@pytest.mark.parametrize("command", ["ask", "search"])
def test_a_question_without_quotes_is_named(command: str, bank: Path, no_model: None) -> None:
    assert "(does the otter live). Put the question in quotes." in wrong_usage(
        command, bank, "Where", "does", "the", "otter", "live"
    )
    assert "quotes" not in wrong_usage("ls", bank, "otter")
    assert "quotes" not in wrong_usage(command, bank, "otter", "--nonsense")


@pytest.mark.parametrize(
    "arguments",
    [("add", "bank", ""), ("add", "bank", "notes", ""), ("estimate", ""), ("add", "", "notes"), ("sync", "bank", "")],
)
def test_an_empty_path_is_not_the_present_folder(
    arguments: tuple[str, ...], notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_model: None
) -> None:
    """As of a variable of the shell that is not set."""
    monkeypatch.chdir(tmp_path)
    assert "A path is empty." in wrong_usage(*arguments)
    assert not (tmp_path / "bank").exists()


def test_an_empty_value_of_an_option_is_no_empty_path(notes: Path, no_model: None) -> None:
    found = CliRunner().invoke(app, ["estimate", str(notes), "--text-column", ""])
    assert "A path is empty." not in found.stderr
    assert "A path is empty." in wrong_usage("estimate", str(notes), "--text-column", "", "")
    assert "requires an argument" in wrong_usage("estimate", "", "--text-column")


@pytest.mark.parametrize(
    "arguments", [("ls", ""), ("ask", "", "otter"), ("info", ""), ("update", "", "a", "--title", "b"), ("reindex", "")]
)
def test_an_empty_name_is_no_bank(
    arguments: tuple[str, ...], notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_model: None
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "the name of the bank is empty" in failed(*arguments)


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        ("ask BANK otter", "--max-documents", -1),
        ("ask BANK otter", "--rounds", 0),
        ("ask BANK otter", "--documents-per-round", 0),
        ("search BANK otter", "--limit", -1),
        ("ls BANK", "--limit", -1),
        ("ls BANK", "--after", -5),
        ("changes BANK 7d", "--limit", -1),
        ("changes BANK 7d", "--offset", -1),
    ],
)
def test_a_number_out_of_range_is_an_error_before_a_model_is_loaded(
    command: str, option: str, value: int, bank: Path, no_model: None
) -> None:
    words = [bank if word == "BANK" else word for word in command.split()]
    assert option in wrong_usage(*words, option, value)


@pytest.mark.parametrize("question", ["", "  ", "\n", "not unicode \udcff"])
@pytest.mark.parametrize("command", [("ask",), ("search",), ("search", "--selector", "lexical")])
def test_an_impossible_question_is_an_error_before_a_model_is_loaded(
    question: str, command: tuple[str, ...], bank: Path, no_model: None
) -> None:
    assert "the question is" in failed(command[0], bank, question, *command[1:])


# --- ids --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        "otter.txt",
        "OTTER.TXT",
        "notes/Otter.txt",
        "./notes/otter.txt",
        "notes\\otter.txt",
        "/home/ann/notes/otter.txt",
        "notes/oter.txt",
        "3",
    ],
)
@pytest.mark.parametrize("command", [("rm",), ("update", "--title", "x")])
def test_an_id_that_is_nearly_one_leads_to_it(given: str, command: tuple[str, ...], bank: Path, no_model: None) -> None:
    before = memspan("ls", bank, "--json").json
    message = failed(command[0], bank, given, *command[1:])
    assert f"there is no document {given!r} in namespace 'default'; did you mean notes/otter.txt" in message
    assert memspan("ls", bank, "--json").json == before


def test_a_folder_leads_to_its_documents_and_nonsense_to_the_list(bank: Path, no_model: None) -> None:
    assert "did you mean notes/heron.md or notes/lynx.txt or notes/otter.txt?" in failed("rm", bank, "notes/")
    for nonsense in ("qqq", "99", "", "ä" * 5000, "9" * 100, "%"):
        assert f"see: memspan ls {quoted(bank)}" in failed("rm", bank, nonsense)
    assert "see: memspan ls" in failed("rm", bank, "otter.txt", "-n", "ann"), "ids of a namespace stay in it"


def test_the_name_that_is_meant_can_be_pasted(notes: Path, tmp_path: Path) -> None:
    (notes / "my own ideas.txt").write_text("The walrus of Nome sings.")
    assert memspan("add", tmp_path / "bank", notes / "my own ideas.txt").code == 0
    message = failed("rm", tmp_path / "bank", "my own ideas.txt")
    assert message.endswith(f"did you mean {quoted('notes/my own ideas.txt')}?\n")


# --- commands that messages name --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["bank", "a/b.c-d_e", "Mein Zeug", "über uns", "it's", "a&b", "$HOME", "s3://x/y z", ""]
)
def test_a_quoted_name_is_one_word_of_the_shell(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memspan.places.os.name", "posix")
    assert shlex.split(quoted(name)) == [name]


def test_on_windows_names_stand_in_double_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memspan.places.os.name", "nt")
    assert quoted(r"C:\bank") == r"C:\bank"
    assert quoted(r"C:\My Things\bank") == r'"C:\My Things\bank"'
    assert quoted("a&b") == '"a&b"'
    assert quoted("") == '""'


def _bare_names(text: str) -> list[str]:
    """Values that stand in a command of a message and may be taken apart by a shell."""
    found = []
    for node in ast.walk(ast.parse(text)):
        written = ""
        for value in node.values if isinstance(node, ast.JoinedStr) else ():
            if isinstance(value, ast.Constant):
                written += str(value.value)
            elif isinstance(value, ast.FormattedValue):
                if COMMAND.search(written) and not ast.unparse(value.value).startswith("quoted("):
                    found.append(f"{node.lineno}: {written}{ast.unparse(value)}")
                written += "X"
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_names_in_commands_are_quoted(path: Path) -> None:
    assert not _bare_names(path.read_text(encoding="utf-8").replace("this memspan reads", ""))


def test_a_bare_name_is_noticed() -> None:
    assert _bare_names('f"run: memspan add {path} FILES"')
    assert _bare_names('f"no {x}; see: memspan publish BANK {url}"')
    assert not _bare_names('f"run: memspan add {quoted(path)} FILES; {path}"')


def test_a_bank_with_a_blank_in_its_name_is_quoted_in_every_remedy(notes: Path, tmp_path: Path) -> None:
    bank = tmp_path / "my bank"
    assert f"make one with: memspan add {quoted(bank)} FILES..." in failed("ls", bank)
    later = memspan("add", bank, notes, "--later")
    assert f"encode the rest with: memspan encode {quoted(bank)}\n" in later.err
    (notes / "otter.txt").unlink()
    assert f"memspan sync {quoted(bank)} FOLDER" in memspan("ls", bank, "--stale").err
    message = failed("search", bank, "otter", "--selector", "lexical", "-n", "my own")
    assert f"memspan add {quoted(bank)} FILES... --namespace {quoted('my own')}" in message


# --- what is there ----------------------------------------------------------------------------------------------------


def test_ls_says_why_it_shows_nothing(bank: Path, no_model: None) -> None:
    assert memspan("ls", bank, "-n", "ann").err == f"there is no namespace 'ann' in {bank}; its namespaces: default\n"
    assert memspan("ls", bank, "--where", "title=nothing").err == "no documents\n"
    assert memspan("ls", bank, "--as-of", "1999").err == "no documents\n"
    assert memspan("ls", bank, "--after", 99).err == "no documents\n"
    listed = memspan("ls", bank, "-n", "ann", "--json")
    assert (listed.json, listed.err) == ([], "")
    memspan("rm", bank, "**", "--yes")
    assert memspan("ls", bank).err == "no documents\n"


def test_estimate_names_what_it_cannot_read(notes: Path, tmp_path: Path) -> None:
    (notes / "photo.jpg").write_bytes(b"\xff\xd8")
    (notes / "empty.txt").write_text("")
    done = memspan("estimate", notes)
    assert done.code == 3
    assert [line.partition(": ")[0] for line in done.err.splitlines()] == [
        f"skipped {notes / 'empty.txt'}",
        f"skipped {notes / 'photo.jpg'}",
    ]
    as_json = memspan("estimate", notes, "--json")
    assert (as_json.code, as_json.json["sources"]) == (3, 3)
    assert as_json.json["skipped"] == memspan("add", tmp_path / "new", notes, "--later", "--json").json["skipped"]


def test_a_namespace_that_is_not_there_is_named_with_those_that_are(bank: Path, no_model: None) -> None:
    missing = f"there is no namespace 'ann' in {bank}; its namespaces: default\n"
    assert failed("encode", bank, "-n", "ann") == f"error: {missing}"
    assert failed("encode", bank, "-n", "default", "-n", "ann") == f"error: {missing}"
    done = memspan("changes", bank, "7d", "-n", "ann")
    assert (done.code, done.out) == (0, "") and done.err.startswith(missing)


# --- files and folders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", ["export BANK gone/all.jsonl", "export BANK gone/all.zip", "export BANK gone/below/all.json"]
)
def test_a_folder_that_is_not_there_is_named(
    command: str, bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_model: None
) -> None:
    monkeypatch.chdir(tmp_path)
    message = failed(*(bank if word == "BANK" else word for word in command.split()))
    assert "gone" in message and "No such file or directory" in message and "Errno" not in message
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (PermissionError(13, "Permission denied", "/x/y"), "/x/y: Permission denied"),
        (IsADirectoryError(21, "Is a directory", b"/x/\xff"), r"/x/\udcff: Is a directory"),
        (PermissionError(13, "Permission denied", "/x/\x1b[31m\n"), r"/x/\x1b[31m\n: Permission denied"),
        (FileNotFoundError("odd"), "odd"),
        (OSError(), "OSError"),
    ],
)
def test_what_the_system_refuses_is_no_traceback(
    error: OSError, shown: str, bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("memspan.bank.texts.TextBank.open", refuse)
    assert failed("ls", bank) == f"error: {shown}\n"


def test_a_closed_pipe_is_not_named_as_an_error_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BrokenPipeError), known_errors():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.parametrize("content", ["# Notes\n", "", "{}\n", '["a"]\n', '{"text": "no namespace"}\n', "\udcff\n"])
def test_an_import_of_something_else_leaves_no_bank(content: str, tmp_path: Path, no_model: None) -> None:
    file = tmp_path / "notes.jsonl"
    file.write_bytes(content.encode(errors="surrogateescape"))
    if content:
        message = failed("import", file, tmp_path / "bank")
        assert "line 1 is not of an exported bank" in message and "memspan add BANK FILE" in message
    else:
        assert "holds no documents" in failed("import", file, tmp_path / "bank")
    assert not (tmp_path / "bank").exists()


@pytest.mark.parametrize("command", ["add BANK NOTES", "add BANK -", "sync BANK NOTES", "import FILE BANK"])
@pytest.mark.parametrize("place", ["notes", "notes/otter.txt", "notes/otter.txt/below"])
def test_a_place_where_no_bank_can_be_made_is_an_error_before_a_model_is_loaded(
    place: str, command: str, notes: Path, tmp_path: Path, no_model: None
) -> None:
    (tmp_path / "all.jsonl").write_text('{"namespace": "default"}')
    words = {"BANK": tmp_path / place, "NOTES": notes, "FILE": tmp_path / "all.jsonl"}
    message = failed(*(words.get(word, word) for word in command.split()))
    assert "not an empty folder" in message or "is a file; name a folder" in message or "Not a directory" in message
    assert len([*tmp_path.rglob("*")]) == 5, "nothing was written"


@pytest.mark.parametrize("there", ["letter.txt", "catalog/letter.txt", "editions/1.json", "latest.json.bak", "a b"])
def test_a_bank_is_not_published_among_other_files(there: str, bank: Path, tmp_path: Path, no_model: None) -> None:
    shared = tmp_path / "shared"
    (shared / there).parent.mkdir(parents=True)
    (shared / there).write_text("mine")
    for url in (shared, shared.as_uri()):
        assert f"holds other files ({there})" in failed("publish", bank, url)
    assert [path for path in shared.rglob("*") if path.is_file()] == [shared / there]


def test_a_bank_is_published_again_beside_what_came_later(bank: Path, tmp_path: Path, no_model: None) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / ".DS_Store").write_text("of a file manager")
    assert memspan("publish", bank, tmp_path / "shared").code == 0
    (tmp_path / "shared" / "README").write_text("whose bank it is")
    assert memspan("publish", bank, tmp_path / "shared").code == 0
    assert (tmp_path / "shared" / "README").is_file()


def test_a_key_that_is_not_there_leads_to_the_list_of_its_file(tmp_path: Path) -> None:
    keys = tmp_path / "my keys.json"
    assert memspan("keys", "add", "ann", "--keys", keys).code == 0
    assert f"see: memspan keys list --keys {quoted(keys)}\n" in failed("keys", "revoke", "bob", "--keys", keys)


@pytest.mark.parametrize("content", ["{}", '{"a": 1}', '{"model_type": null}'])
@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_config_of_something_else_is_no_checkpoint(command: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    message = failed(command, tmp_path)
    assert "is not a checkpoint folder (its config.json names no model_type)" in message


@pytest.mark.parametrize("option", ["--as-of", "--known-at"])
def test_a_moment_that_is_none_names_its_option(option: str, bank: Path, no_model: None) -> None:
    message = failed("ls", bank, option, "yesterday")
    assert message.startswith(
        f"error: {option[2:].replace('-', '_')}: 'yesterday' is not a date; write it as 2026-03-01"
    )


def test_a_file_for_an_update_that_is_missing_is_named_once(bank: Path, tmp_path: Path, no_model: None) -> None:
    message = failed("update", bank, "notes/otter.txt", tmp_path / "gone.txt")
    assert message == f"error: {tmp_path / 'gone.txt'}: cannot be read: No such file or directory\n"


def test_a_server_names_the_bank_that_it_makes(bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name may be mistyped."""
    monkeypatch.setattr("memspan.serve.run.make_server", lambda *_: None)
    monkeypatch.setattr("memspan.serve.run.run_server", lambda *_: None)
    new = tmp_path / "bnak"
    made = f"note: there was no bank in {new}; an empty one is made\n"
    assert memspan("serve", bank, f"other={new}").err == made
    assert memspan("serve", bank).err == ""
    monkeypatch.setattr("memspan.serve.mcp.loading_mcp", lambda *_: SimpleNamespace(run=lambda _: None))
    assert memspan("mcp", new).err == made
    assert memspan("mcp", bank).err == ""


def test_one_is_one(tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    shown = memspan("add", bank, "-", "--later", stdin="The walrus sleeps in Nome.")
    assert "note: 1 document is not encoded yet" in shown.err
    assert re.search(r"encoded 1 document, \d+ tokens in", memspan("encode", bank).out)
    assert memspan("export", bank, tmp_path / "all.jsonl").err.startswith("1 document written to")
    assert "forget 1 document?" in memspan("rm", bank, "*", stdin="y\n").err


# --- encodings of the terminal ----------------------------------------------------------------------------------------

NAME, TEXT = "notes/über 会議.txt", "Grüße aus 東京 🦦."


@pytest.fixture
def foreign(bank: Path, tmp_path: Path) -> Path:
    line = json.dumps({"id": NAME, "text": TEXT, "title": "會 Ö"})
    assert memspan("add", bank, "-", "--later", stdin=line).code == 0
    return bank


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "cp932", "utf-8", "utf-16-le"])
def test_names_and_texts_are_shown_in_any_encoding(encoding: str, foreign: Path, no_model: None) -> None:
    in_it = CliRunner(charset=encoding)

    def run(*arguments: object) -> bytes:
        done = in_it.invoke(app, [str(argument) for argument in arguments])
        assert (done.exit_code, done.stderr_bytes) == (0, b""), done.stderr
        return done.stdout_bytes

    shown = run("ls", foreign).decode(encoding)
    assert NAME.encode(encoding, "backslashreplace").decode(encoding) in shown
    (found,) = (one for one in json.loads(run("ls", foreign, "--json").decode(encoding)) if one["external_id"] == NAME)
    assert (found["text"], found["title"]) == (TEXT, "會 Ö")
    lines = map(json.loads, run("export", foreign, "-").decode("utf-8").splitlines())
    assert {one["text"] for one in lines if one["external_id"] == NAME} == {TEXT}


def test_an_error_names_what_the_terminal_cannot_show(foreign: Path, no_model: None) -> None:
    done = CliRunner(charset="ascii").invoke(app, ["rm", str(foreign), "nichts über 会議"])
    assert done.exit_code == 1 and rb"'nichts \xfcber \u4f1a\u8b70'" in done.stderr_bytes
