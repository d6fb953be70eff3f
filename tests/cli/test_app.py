from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from command import ANSI, failed, memspan, runner

from memspan.bank.bank import MemoryBank
from memspan.cli import app, commands, render
from memspan.config import TEMPLATES
from memspan.generate.chat import DEFAULT_SAMPLING
from memspan.generate.request import MAX_DOCUMENTS
from memspan.generate.sampling import Sampling
from memspan.generate.selectors import selector_names
from memspan.model.convert import convert
from memspan.model.shipped import DEFAULT_SOURCE
from memspan.routing.ranking import fuse
from memspan.text import corpus, installed
from memspan.types import Answer

COMMANDS = {
    "convert": ("--out", "--layers", "--template"),
    "add": ("--installed-packages", "--model", "--namespace", "--json"),
    "ask": ("--selector", "--max-documents", "--temperature", "--where", "--as-of", "--namespace"),
    "search": ("--selector", "--limit", "--where", "--as-of", "--namespace"),
    "rm": ("--id", "--namespace", "--json"),
    "update": ("--title", "--date", "--set", "--namespace", "--model"),
    "compact": ("--secure", "--timeout"),
    "verify": ("--repair", "--model"),
    "reencode": ("--model", "--json"),
    "reindex": ("--json",),
    "export": (),
    "import": ("--model", "--json"),
    "ls": ("--after", "--limit", "--json"),
    "info": ("--json",),
    "estimate": ("--installed-packages", "--model"),
}


def _help(*command: str) -> str:
    result = runner.invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    return ANSI.sub("", result.stdout)


# --- help -----------------------------------------------------------------------------------------------------------


def test_help_names_every_command_with_a_sentence() -> None:
    shown = _help()
    for command in COMMANDS:
        assert re.search(rf"\b{command} +\w+ [\w ]+", shown), command


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_its_options(command: str) -> None:
    shown = _help(command)
    for option in COMMANDS[command]:
        assert re.search(rf"{option}\b.*\w\w\w", shown), option


def test_defaults_and_choices_shown_are_the_librarys() -> None:
    """They are written out in the command line, which must not import what takes seconds."""
    options = {name: inspect.signature(getattr(commands, name)).parameters for name in ("ask", "convert")}
    sampling = Sampling()
    defaults = {name: options["ask"][name].default for name in ("temperature", "top_p", "seed")}
    assert defaults == {name: getattr(sampling, name) for name in defaults}
    lengths = f"Default: {sampling.max_new_tokens}; {DEFAULT_SAMPLING.max_new_tokens} with --answer-with"
    assert lengths in " ".join(_help("ask").replace("│", " ").split())
    assert options["ask"]["max_documents"].default == MAX_DOCUMENTS
    assert options["convert"]["source"].default == DEFAULT_SOURCE
    library = inspect.signature(convert).parameters
    for ours, theirs in (("chunk_size", "chunk_size"), ("top_k", "top_k_docs"), ("seed", "seed")):
        assert options["convert"][ours].default == library[theirs].default
    assert all(name in _help("ask") for name in selector_names())
    assert all(name in _help("convert") for name in TEMPLATES)


def test_help_imports_nothing_that_takes_seconds() -> None:
    program = "import sys\nfrom memspan.cli import app\ntry:\n    app(['add', '--help'])\nfinally:\n"
    program += "    assert not {'torch', 'transformers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_wrong_usage_exits_2() -> None:
    assert runner.invoke(app, ["ask"]).exit_code == 2
    assert runner.invoke(app, ["ls", "bank", "--limit", "many"]).exit_code == 2
    assert runner.invoke(app, ["no-such-command"]).exit_code == 2


# --- convert --------------------------------------------------------------------------------------------------------


def test_convert_describes_the_checkpoint_it_made(plain: Path, tmp_path: Path) -> None:
    settings = ("--dtype", "float32", "--layers", "1,3", "--chunk-size", 4, "--top-k", 2, "--seed", 5)
    done = memspan("convert", plain, "--out", tmp_path / "msa", *settings, "--json")
    assert done.code == 0
    expected = {
        "checkpoint": str(tmp_path / "msa"),
        "backbone": "llama",
        "layers": 4,
        "msa_layers": [1, 3],
        "chunk_size": 4,
        "top_k_docs": 2,
        "similarity": "cosine",
        "template": "chatml",
        "router_trained": False,
    }
    assert {name: done.json[name] for name in expected} == expected
    assert re.fullmatch("v2-[0-9a-f]{64}", done.json["encoder_fingerprint"])
    assert memspan("info", tmp_path / "msa", "--json").json == done.json
    plain_lines = memspan("info", tmp_path / "msa").out.splitlines()
    assert [line.split()[0] for line in plain_lines] == list(done.json)
    assert "msa_layers            [1, 3]" in plain_lines


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--template", "nope"), "template must be one of chatml, msa, plain, not 'nope'"),
        (("--dtype", "int8"), "dtype must be one of float32, bfloat16, float16, not 'int8'"),
        (("--layers", "2,9"), "msa_layers must be ascending, distinct layer indices in 0..3"),
        (("--chunk-size", "0"), "chunk_size must be at least 1, not 0"),
    ],
)
def test_convert_refuses_impossible_settings(
    plain: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    assert message in failed("convert", plain, "--out", tmp_path / "msa", *arguments)
    assert not (tmp_path / "msa").exists()


def test_convert_refuses_a_full_folder_and_a_source_that_is_nothing(plain: Path, notes: Path, tmp_path: Path) -> None:
    assert "is not an empty folder" in failed("convert", plain, "--out", notes)
    assert "neither a checkpoint folder" in failed("convert", tmp_path / "gone", "--out", tmp_path / "msa")
    assert runner.invoke(app, ["convert", str(plain)]).exit_code == 2, "--out is needed"


# --- add ------------------------------------------------------------------------------------------------------------


def test_add_reports_what_it_did_and_again_finds_everything_unchanged(notes: Path, tmp_path: Path) -> None:
    done = memspan("add", tmp_path / "bank", notes, "--json")
    assert done.code == 0
    report = done.json
    assert (report["added"], report["updated"], report["unchanged"], report["documents"]) == (3, 0, 0, 3)
    assert (report["skipped"], report["interrupted"], report["bank"]["sources"]) == ([], False, 3)
    again = memspan("add", tmp_path / "bank", notes)
    assert again.code == 0
    assert again.out.startswith("done: 0 added, 0 updated, 3 unchanged, 0 skipped\n")
    (notes / "lynx.txt").write_text("The lynx of Quito is awake.")
    assert "done: 0 added, 1 updated, 2 unchanged, 0 skipped" in memspan("add", tmp_path / "bank", notes).out


@pytest.mark.parametrize("command", ["add", "estimate"])
def test_a_corpus_is_read_once(command: str, notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    (tmp_path / "records.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    reads = ((corpus, "read_content"), (corpus, "read_records"), (installed, "_document_of_package"))
    for module, name in reads:
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda what, *more, real=real: (read.append(str(what)), real(what, *more))[1])
    few = list(islice(installed.distributions(), 5))
    monkeypatch.setattr(installed, "distributions", lambda: few)
    bank = [tmp_path / "bank"] if command == "add" else []
    memspan(command, *bank, notes, tmp_path / "records.jsonl", "--installed-packages", "--json")
    assert len(read) > 3
    assert len(set(read)) == len(read)


def test_a_file_given_by_itself_is_the_document_that_its_folder_gives(notes: Path, tmp_path: Path) -> None:
    done = memspan("add", tmp_path / "bank", notes / "otter.txt", notes / "heron.md")
    assert (done.code, done.err) == (0, "")
    listed = memspan("ls", tmp_path / "bank", "--json").json
    assert [found["external_id"] for found in listed] == ["notes/otter.txt", "notes/heron.md"]
    again = memspan("add", tmp_path / "bank", notes)
    assert again.out.startswith("done: 1 added, 0 updated, 2 unchanged"), "the third note"


def test_files_that_cannot_be_read_are_named_and_the_rest_is_remembered(notes: Path, tmp_path: Path) -> None:
    (notes / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (notes / "blob.txt").write_bytes(b"\0\1\2binary")
    (notes / "empty.md").write_text("")
    done = memspan("add", tmp_path / "bank", notes)
    assert done.code == 3
    assert "done: 3 added, 0 updated, 0 unchanged, 3 skipped" in done.out
    skipped = re.findall(r"^skipped (\S+): \S+", done.err, re.MULTILINE)
    assert skipped == [str(notes / name) for name in ("blob.txt", "empty.md", "image.png")]
    again = memspan("add", tmp_path / "bank", notes, "--json")
    assert again.code == 3
    assert [Path(found["source"]).name for found in again.json["skipped"]] == ["blob.txt", "empty.md", "image.png"]
    assert all(found["reason"] for found in again.json["skipped"])


def test_how_files_are_read_may_be_said(notes: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_bytes(
        "Nr;Titel;Inhalt;date\n1;Größe;Die Schleiereule ruft.;2024-03\n2;b;c;03/04/2024\n".encode("cp1252")
    )
    named = ("--text-column", "inhalt", "--title-column", "titel")
    refused = memspan("add", tmp_path / "bank", table)
    assert refused.code == 3 and "the columns are Nr, Titel, Inhalt, date" in refused.err
    done = memspan("add", tmp_path / "bank", table, *named, "--encoding", "cp1252")
    assert done.code == 3 and "done: 2 added" in done.out
    assert "table.csv#3: kept without its date" in done.err and "'03/04/2024' may mean two days" in done.err
    first = memspan("ls", tmp_path / "bank", "--where", "date=2024-03-31", "--json").json
    assert [(row["title"], row["date"]) for row in first] == [("Größe", "2024-03")]
    assert memspan("add", tmp_path / "bank", table, "--format", "txt", "--json").json["added"] == 1
    assert memspan("add", tmp_path / "bank", "-", "--encoding", "koi8-r", stdin="о".encode("koi8-r")).code == 0
    for wrong, said in (
        (("--encoding", "nonsense"), "no text encoding"),
        (("--format", "nonsense"), "file format must be"),
    ):
        failed = memspan("add", tmp_path / "bank", table, *wrong)
        assert failed.code == 1 and said in failed.err
    assert memspan("estimate", table, *named, "--json").json["sources"] == 2


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def test_standard_input_is_one_document_or_a_record_a_line(tmp_path: Path) -> None:
    walrus = "A walrus sleeps in Nome.\n"
    assert memspan("add", tmp_path / "bank", "-", stdin=walrus).code == 0
    records = [{"id": "first", "text": "A yak.", "colour": "brown"}, {"text": "A gnu.", "title": "Gnu"}]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    assert memspan("add", tmp_path / "bank", "-", stdin=lines).code == 0
    listed = memspan("ls", tmp_path / "bank", "--json").json
    found = [(item["external_id"], item["title"], item["text"], item["metadata"]) for item in listed]
    assert found == [
        (f"stdin:{_short_hash(walrus)}", "", walrus, {}),
        ("first", "", "A yak.", {"colour": "brown"}),
        (f"stdin:{_short_hash(lines)}#2", "Gnu", "A gnu.", {}),
    ]
    done = memspan("add", tmp_path / "bank", "-", stdin="")
    assert (done.code, done.err) == (3, "skipped stdin: empty\n")


def test_standard_input_and_files_are_added_together(notes: Path, tmp_path: Path) -> None:
    done = memspan("add", tmp_path / "bank", notes, "-", "--json", stdin="A walrus.")
    assert (done.code, done.json["added"]) == (0, 4)


def test_a_file_of_records_names_the_lines_it_could_not_use(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(
        '{"id": "a", "text": "One."}\nnot json\n{"id": "c", "note": "no text"}\n{"id": 4, "text": "Four."}\n'
    )
    done = memspan("add", tmp_path / "bank", path, "--json")
    assert (done.code, done.json["added"]) == (3, 2)
    assert [found["source"] for found in done.json["skipped"]] == [f"{path}#2", f"{path}#3"]


def test_a_second_document_of_one_id_is_named_and_does_not_replace_the_first(tmp_path: Path) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_text('{"id": "same", "text": "One."}\n{"id": "other", "text": "Two."}\n')
    second.write_text('{"id": "same", "text": "Three."}\n{"id": "third", "text": "Four."}\n')
    done = memspan("add", tmp_path / "bank", first, second)
    assert done.code == 3
    assert done.out.startswith("done: 3 added, 0 updated, 0 unchanged, 1 skipped\n")
    assert done.err == f"skipped {second}: a document of the id 'same' was read before, from another file\n"
    listed = memspan("ls", tmp_path / "bank", "--json").json
    texts = {found["external_id"]: found["text"] for found in listed}
    assert texts == {"same": "One.", "other": "Two.", "third": "Four."}
    again = memspan("add", tmp_path / "bank", first, second, "--json")
    assert (again.code, again.json["unchanged"], again.json["updated"], len(again.json["skipped"])) == (3, 3, 0, 1)


def test_nothing_to_add_and_missing_paths_are_errors_before_a_model_is_loaded(tmp_path: Path, no_model: None) -> None:
    assert "nothing to add; name files or folders" in failed("add", tmp_path / "bank")
    assert "gone.txt does not exist" in failed("add", tmp_path / "bank", tmp_path / "gone.txt")
    assert not (tmp_path / "bank").exists()


def test_a_folder_that_is_no_bank_is_not_written_into(notes: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("keep")
    assert "is not an empty folder" in failed("add", tmp_path / "mine", notes)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["precious.txt"]


def test_the_model_may_be_named_by_option_or_environment(
    notes: Path, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMSPAN_MODEL", str(tmp_path / "gone"))
    assert "gone is not a checkpoint folder" in failed("add", tmp_path / "bank", notes)
    assert memspan("add", tmp_path / "bank", notes, "--model", checkpoint).code == 0, "the option wins"
    monkeypatch.delenv("MEMSPAN_MODEL")
    assert memspan("ask", tmp_path / "bank", "otter", "--model", checkpoint).code == 0


def test_a_bank_of_another_model_is_refused_by_name(bank: Path, plain: Path, tmp_path: Path) -> None:
    convert(str(plain), tmp_path / "other", dtype=torch.float32, chunk_size=8, top_k_docs=2)
    message = failed("ask", bank, "otter", "--model", tmp_path / "other")
    assert "this bank was encoded by another model" in message
    assert "chunk_size: bank 4, model 8" in message


# --- stopping -------------------------------------------------------------------------------------------------------


def _many(folder: Path) -> Path:
    """Records of several batches of encoding."""
    path = folder / "many.jsonl"
    records = [{"id": f"r{number}", "text": f"Record {number} says {'word ' * 40}"} for number in range(60)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_keeps_what_was_encoded_and_the_same_command_continues(
    presses: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, before = _many(tmp_path), signal.getsignal(signal.SIGINT)

    def press(self: render.AddProgress, report: object) -> None:
        for _ in range(presses):
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(render.AddProgress, "__call__", press)
        stopped = memspan("add", tmp_path / "bank", path)
    assert stopped.code == 130
    assert "run the same command again to continue" in stopped.err
    assert signal.getsignal(signal.SIGINT) is before
    counts = MemoryBank.open(tmp_path / "bank").catalog.counts()
    assert (counts.sources, counts.pending) == (60, 60), "the texts are kept, also where it is pressed again"
    assert ("stopped: " in stopped.out) == (presses == 1)
    report = memspan("add", tmp_path / "bank", path, "--json").json
    assert (report["unchanged"], report["documents"], report["pending"], report["bank"]["sources"]) == (60, 60, 0, 60)
    listed = memspan("ls", tmp_path / "bank", "--json", "--limit", 100).json
    assert {found["external_id"] for found in listed} == {f"r{number}" for number in range(60)}


# --- ask ------------------------------------------------------------------------------------------------------------


def test_ask_shows_the_answer_with_evidence(bank: Path) -> None:
    done = memspan("ask", bank, "Where does the otter of Rome live?", "--max-new-tokens", 6)
    assert done.code == 0
    assert done.err == "note: this model's router is untrained; documents are chosen by full-text search\n"
    expected = memspan("ask", bank, "Where does the otter of Rome live?", "--max-new-tokens", 6, "--json").json
    *answer, cited, evidence, footer = done.out.splitlines()
    assert "\n".join(answer).strip() == expected["text"]
    assert cited.startswith("  “") and cited.endswith("” no document that was read says so"), "it writes no words"
    assert [one["supported"] for one in expected["citations"]] == [False] and expected["answered"] is True
    line = r"  1\. \[3\] otter  \(notes/otter\.txt\[0:40\], [-\d]{10}, score \d\.\d\d"
    assert re.fullmatch(rf"{line}\)", evidence) and expected["evidence"][0]["layers"] is None, "nothing was routed"
    routed = memspan("ask", bank, "Where does the otter of Rome live?", "--selector", "lexical", "--route-answer")
    assert re.search(rf"^{line}, \d MSA layers\)$", routed.out, re.MULTILINE)
    assert footer.startswith(
        f"  selector lexical; {expected['num_prompt_tokens']} + {expected['num_new_tokens']} tokens; "
    )


@pytest.fixture
def words_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model's router is noise, of which `hybrid` takes little here."""
    monkeypatch.setattr(fuse, "__defaults__", (0.05, ()))


@pytest.mark.usefixtures("words_decide")
def test_ask_as_json_holds_every_field_of_an_answer(bank: Path) -> None:
    options = ("--selector", "hybrid", "--max-documents", 2, "--max-new-tokens", 4, "--json")
    question = "Does the otter of Rome live there, or the heron?"
    done = memspan("ask", bank, question, *options)
    assert (done.code, done.err) == (0, "")
    assert set(done.json) == set(Answer.__slots__)
    assert (done.json["question"], done.json["selector"]) == (question, "hybrid")
    assert done.json["num_new_tokens"] <= 4
    found = done.json["evidence"][0]
    assert found["external_id"] == "notes/otter.txt"
    assert (found["text"], found["span"]) == ("The otter of Rome lives at number seven.", {"start": 0, "end": 40})
    assert isinstance(found["layers"], int)


@pytest.mark.usefixtures("words_decide")
def test_a_trace_tells_every_round(bank: Path) -> None:
    question = "Who fishes where the heron lives?"
    options = ("--selector", "hybrid", "--rounds", 2, "--documents-per-round", 1, "--max-new-tokens", 4)
    expected = memspan("ask", bank, question, *options, "--json").json
    first, second = expected["rounds"]
    assert [found["external_id"] for found in first["chosen"]] == ["notes/heron.md"]
    assert second["query"] == question + " Oslo"
    assert [layer["layer"] for layer in first["routed"]] == [2, 3]
    assert all(len(layer["document_ids"]) == len(layer["scores"]) == 2 for layer in second["routed"])
    lines = memspan("ask", bank, question, *options, "--trace").out.splitlines()
    start = lines.index(f"  round 1, by hybrid: {question}")
    assert lines[start + 3].startswith("    read 1. [") and "notes/heron.md" in lines[start + 3]
    assert re.fullmatch(r"    looks further; 0 tokens written, \d+ put in; select \d+ ms", lines[start + 4])
    assert lines[start + 5] == f"  round 2, by hybrid: {question} Oslo"
    ids = ", ".join(rf"\[{number}\] -?\d\.\d{{3}}" for number in second["routed"][0]["document_ids"])
    assert re.fullmatch(f"    layer 2: {ids}", lines[start + 6])
    assert lines[-3] == "  answered with the latents of"
    assert not any(line.startswith("  round") for line in memspan("ask", bank, question, *options).out.splitlines())


def test_no_text_answers_from_the_latents(bank: Path) -> None:
    answer = memspan("ask", bank, "otter", "--no-text", "--max-new-tokens", 4, "--json").json
    assert (answer["evidence"], answer["rounds"][0]["injected"]) == ([], "")
    assert answer["routed"][0]["document_ids"]


def test_a_model_without_round_markers_says_so(bank: Path) -> None:
    assert "has no markers for rounds" in failed("ask", bank, "otter", "--selector", "generate")
    wrong = memspan("ask", bank, "otter", "--selector", "lexical", "--rounds", 0)
    assert wrong.code == 2 and "--rounds" in wrong.err


def test_ask_samples_by_its_seed(bank: Path) -> None:
    def text(seed: int) -> str:
        options = ("--temperature", 1.5, "--top-p", 0.95, "--seed", seed, "--max-new-tokens", 8, "--json")
        return memspan("ask", bank, "otter", *options).json["text"]

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(1, 5)}) > 1


def test_a_tiny_temperature_is_as_good_as_none(bank: Path) -> None:
    options = ("--dtype", "float32", "--json")  # in bfloat16 two tokens may tie for the first place
    texts = [memspan("ask", bank, "otter", "--temperature", value, *options).json["text"] for value in ("1e-300", 0)]
    assert texts[0] == texts[1]


def test_stop_strings_of_the_command_line_end_an_answer(bank: Path) -> None:
    whole = memspan("ask", bank, "otter", "--json").json
    stop = next(char for char in whole["text"] if not char.isspace())
    cut = memspan("ask", bank, "otter", "--stop", "never", "--stop", stop, "--json").json
    assert (cut["text"], cut["finish_reason"]) == (whole["text"][: whole["text"].index(stop)].strip(), "stop_string")


def test_questions_come_from_standard_input_line_by_line(bank: Path) -> None:
    asked = ["Where is the otter?", "And the lynx?"]
    done = memspan("ask", bank, "--max-new-tokens", 4, "--json", stdin="\n".join(["", asked[0], "  ", f" {asked[1]} "]))
    assert done.code == 0
    answers = [json.loads(line) for line in done.out.splitlines()]
    assert [answer["question"] for answer in answers] == asked
    alone = [memspan("ask", bank, question, "--max-new-tokens", 4, "--json").json["text"] for question in asked]
    assert [answer["text"] for answer in answers] == alone


def test_a_question_that_fails_does_not_end_the_ones_after_it(bank: Path) -> None:
    stdin = f"{'long ' * 600}\nWhere is the otter?\n"
    done = memspan("ask", bank, "--max-new-tokens", 4, "--json", stdin=stdin)
    assert "error: the question needs" in done.err
    assert done.json["question"] == "Where is the otter?"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((" ",), "the question is empty; write one"),
        (
            ("otter", "--selector", "magic"),
            "selector must be one of router, lexical, hybrid, generate, dense, fused, rrf, not 'magic'",
        ),
        (("otter", "--max-new-tokens", "0"), "max_new_tokens must be at least 1, not 0"),
        (("otter", "--temperature", "-1"), "temperature must be 0 or a positive number"),
        (("otter", "--top-p", "0"), "top_p must be above 0"),
        (("otter", "--stop", ""), "a stop string must not be empty"),
        (("otter", "--max-new-tokens", "512"), "an answer of 512 tokens leaves the model no room"),
        (("otter", "--dtype", "int8"), "dtype must be one of"),
        (("otter", "--device", "nonsense"), "device 'nonsense' is not present on this machine"),
    ],
)
def test_impossible_questions_and_settings_are_named(bank: Path, arguments: tuple[str, ...], message: str) -> None:
    done = memspan("ask", bank, *arguments)
    assert (done.code, done.out) == (1, "")
    assert f"error: {message}" in done.err


def test_asking_without_a_bank_or_an_empty_one_says_how_to_make_one(tmp_path: Path, no_model: None) -> None:
    assert f"there is no bank in {tmp_path / 'bank'}; make one with: memspan add" in failed(
        "ask", tmp_path / "bank", "q"
    )


def test_asking_an_empty_bank_says_how_to_fill_it(tmp_path: Path) -> None:
    assert memspan("add", tmp_path / "bank", "-", stdin="").code == 3
    done = memspan("ask", tmp_path / "bank", "otter")
    assert done.code == 1
    assert "holds no documents; add some with: memspan add" in done.err


# --- ls, info, estimate ---------------------------------------------------------------------------------------------


def test_ls_pages_through_the_documents(bank: Path, no_model: None) -> None:
    listed = memspan("ls", bank, "--json").json
    assert [found["external_id"] for found in listed] == [*("notes/heron.md", "notes/lynx.txt", "notes/otter.txt")]
    fields = {
        "id",
        "source_id",
        "external_id",
        "title",
        "text",
        "span",
        "metadata",
        "date",
        "tokens",
        "chunks",
        "pages",
    }
    assert set(listed[0]) == fields
    first = memspan("ls", bank, "--limit", 2)
    assert [line.split()[:2] for line in first.out.splitlines()] == [["1", "notes/heron.md"], ["2", "notes/lynx.txt"]]
    assert first.err == "more with --after 2\n"
    rest = memspan("ls", bank, "--after", 2)
    assert [line.split()[1] for line in rest.out.splitlines()] == ["notes/otter.txt"]
    assert rest.err == ""


def test_info_describes_a_bank(bank: Path, checkpoint: Path, no_model: None) -> None:
    values = memspan("info", bank, "--json").json
    assert values["bank"] == str(bank)
    assert (values["sources"], values["documents"], values["chunk_size"], values["dtype"]) == (3, 3, 4, "bfloat16")
    assert values["encoder_fingerprint"] == memspan("info", checkpoint, "--json").json["encoder_fingerprint"]
    assert "chunk_size           4" in memspan("info", bank).out.splitlines()


def test_info_ls_and_estimate_name_what_is_missing(notes: Path, tmp_path: Path, no_model: None) -> None:
    assert "is neither a bank nor a checkpoint" in failed("info", notes)
    assert "there is no bank in" in failed("ls", notes)
    assert "gone does not exist" in failed("estimate", tmp_path / "gone")


def test_estimate_counts_what_add_encodes_and_writes_nothing(notes: Path, tmp_path: Path) -> None:
    estimated = memspan("estimate", notes, "--json")
    assert (estimated.code, sorted(path.name for path in tmp_path.iterdir())) == (0, ["notes"])
    added = memspan("add", tmp_path / "bank", notes, "--json").json
    assert (estimated.json["sources"], estimated.json["documents"]) == (added["added"], added["documents"])
    # Ids are counted at their widest.
    assert added["tokens"] <= estimated.json["tokens"] <= added["tokens"] + 14 * added["documents"]
    assert estimated.json["tokens_per_second"] > 0
    shown = memspan("estimate", notes).out.splitlines()
    assert [line.split()[0] for line in shown] == [
        *("sources", "documents", "tokens", "speed", "time", "latents", "routing", "catalog")
    ]


def test_the_latents_estimated_are_those_on_disk(tmp_path: Path) -> None:
    # Many documents, so that a file's header is small beside its rows.
    path = _many(tmp_path)
    estimated = memspan("estimate", path, "--json").json
    memspan("add", tmp_path / "bank", path)
    on_disk = memspan("info", tmp_path / "bank", "--json").json
    assert estimated["latent_bytes"] == pytest.approx(on_disk["segment_bytes"], rel=0.1)
    assert estimated["routing_key_bytes"] == estimated["latent_bytes"] // 3


# --- odd input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("ask", "BANK", "otter", "--temperature", "nan"),
        ("ask", "BANK", "not unicode \udcff"),
        ("ask", "BANK", "otter", "--max-documents", "-1"),
        ("ask", "BANK", "otter", "--seed", str(2**70)),
        ("ask", "BANK", "otter", "--max-new-tokens", str(10**9)),
        ("estimate",),
        ("info", "PLAIN"),
        ("convert", "MSA", "--out", "NEW"),
        ("convert", "PLAIN", "--out", "FILE/below"),
    ],
    ids=lambda arguments: " ".join(arguments).encode("ascii", "replace").decode(),
)
def test_no_input_ends_in_a_traceback(
    arguments: tuple[str, ...], bank: Path, plain: Path, checkpoint: Path, notes: Path, tmp_path: Path
) -> None:
    places = {"BANK": bank, "PLAIN": plain, "MSA": checkpoint, "NEW": tmp_path / "new"}
    places["FILE/below"] = notes / "otter.txt" / "below"
    done = memspan(*(places.get(argument, argument) for argument in arguments))
    assert done.code in (1, 2)
    assert "rror" in done.err


def test_a_page_of_nothing_is_empty(bank: Path) -> None:
    done = memspan("ls", bank, "--limit", 0)
    assert (done.code, done.out) == (0, "")


def test_info_names_a_damaged_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    assert "damaged" in failed("info", tmp_path)


def test_a_pipe_given_as_a_file_is_remembered(tmp_path: Path) -> None:
    """What a shell makes of `memspan add BANK <(command)`."""
    reading, writing = os.pipe()
    os.write(writing, b"A walrus sleeps in Nome.")
    os.close(writing)
    try:
        done = memspan("add", tmp_path / "bank", f"/dev/fd/{reading}")
    finally:
        os.close(reading)
    assert "1 added" in done.out


def test_after_the_last_id_however_large_there_is_nothing(bank: Path) -> None:
    done = memspan("ls", bank, "--after", 10**30)
    assert (done.code, done.out) == (0, "")
