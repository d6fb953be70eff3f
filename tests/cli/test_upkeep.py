"""The commands that change, check and move a bank, as a user meets them."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
import torch
from command import failed, memspan
from helpers import make_first_index

from memspan.bank.bank import MemoryBank
from memspan.bank.texts import TextBank
from memspan.model.convert import convert

OTTER, HERON, LYNX = "notes/otter.txt", "notes/heron.md", "notes/lynx.txt"


def listed(bank: Path, *options: object) -> list[str]:
    return [found["external_id"] for found in memspan("ls", bank, "--json", *options).json]


def searched(bank: Path, question: str, *options: object) -> list[str]:
    return [found["external_id"] for found in memspan("search", bank, question, "--json", *options).json]


def clean(bank: Path) -> bool:
    done = memspan("verify", bank)
    return (done.code, done.out) == (0, "no fault found\n")


def test_rm_forgets_by_external_id_and_by_number(bank: Path, no_model: None) -> None:
    assert memspan("rm", bank, OTTER).out == "deleted  1\n"
    assert listed(bank) == [HERON, LYNX]
    assert memspan("rm", bank, "--id", 1, "--json").json == {"deleted": 1}
    assert listed(bank) == [LYNX]
    assert clean(bank)


def test_rm_of_something_unknown_deletes_nothing_and_says_where_to_look(bank: Path, no_model: None) -> None:
    assert "no document 'cat'" in (message := failed("rm", bank, OTTER, "cat"))
    assert f"see: memspan ls {bank}" in message
    assert "no document 99" in failed("rm", bank, "--id", 99)
    assert "name external ids, or --id" in failed("rm", bank)
    assert len(listed(bank)) == 3


def test_what_was_removed_is_found_no_more_and_can_be_added_again(bank: Path, notes: Path) -> None:
    memspan("rm", bank, OTTER)
    assert OTTER not in searched(bank, "otter of Rome")
    lines = json.dumps({"id": OTTER, "text": (notes / "otter.txt").read_text()})
    assert memspan("add", bank, "-", "--json", stdin=lines).json["added"] == 1
    assert searched(bank, "otter of Rome")[0] == OTTER


def test_update_replaces_the_text_from_a_file_or_standard_input(bank: Path, tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("The otter moved to Paris.")
    assert "1 updated" in memspan("update", bank, OTTER, tmp_path / "new.txt").out
    assert searched(bank, "Paris") == [OTTER] and searched(bank, "seven") == []
    memspan("update", bank, OTTER, "-", stdin="The otter moved to Madrid.")
    assert searched(bank, "Madrid") == [OTTER] and searched(bank, "Paris") == []


def test_update_of_title_date_and_metadata_keeps_the_rest(bank: Path) -> None:
    done = memspan("update", bank, OTTER, "--date", "2020-05-01", "--set", "legs=4", "--set", "place=Rome", "--json")
    assert (done.json["updated"], done.json["documents"]) == (1, 0), "nothing is encoded"
    (found,) = memspan("search", bank, "otter of Rome", "--where", "legs=4", "--json").json
    assert (found["date"], found["metadata"]["place"], found["metadata"]["legs"]) == ("2020-05-01", "Rome", 4)
    assert found["text"] == "The otter of Rome lives at number seven."
    memspan("update", bank, OTTER, "--title", "Otters")
    assert memspan("search", bank, "otters", "--json").json[0]["title"] == "Otters"


def test_update_says_what_is_missing_before_a_model_is_loaded(bank: Path, tmp_path: Path, no_model: None) -> None:
    assert "name a FILE, --title, --date" in failed("update", bank, OTTER)
    assert "no document 'cat'" in failed("update", bank, "cat", "--title", "x")
    assert "--set needs KEY=VALUE" in failed("update", bank, OTTER, "--set", "legs")
    assert "missing.txt" in failed("update", bank, OTTER, tmp_path / "missing.txt")


def test_filters_of_the_command_line_narrow_ls_search_and_ask(bank: Path) -> None:
    memspan("update", bank, OTTER, "--date", "2020-05-01", "--set", "legs=4")
    memspan("update", bank, HERON, "--date", "2021-05-01", "--set", "legs=2")
    assert listed(bank, "--where", "legs>2") == [OTTER]
    assert listed(bank, "--as-of", "2021-12-31") == [HERON, OTTER]
    assert searched(bank, "otter heron lynx", "--where", '{"legs": {"in": [2, 3]}}') == [HERON]
    assert searched(bank, "otter heron lynx", "--where", "date<2021-01-01") == [OTTER]
    for selector in ("lexical", "hybrid"):  # without a model, and with one
        found = memspan("search", bank, "otter", "--selector", selector, "--json").json
        assert [item["external_id"] for item in found][:1] == [OTTER] and 0 < found[0]["score"] < 1
        assert searched(bank, "otter", "--selector", selector, "--min-score", found[0]["score"])[:1] == [OTTER]
        assert searched(bank, "otter", "--selector", selector, "--min-score", "1") == []
        least = "--selector", selector, "--max-new-tokens", 2, "--min-score"
        assert memspan("ask", bank, "otter", *least, found[0]["score"], "--json").json["evidence"][0] == found[0]
        assert "  no answer: nothing was found" in memspan("ask", bank, "otter", *least, "1").out
        for command in ("search", "ask"):
            for wrong in ("2", "nan"):
                said = failed(command, bank, "otter", "--selector", selector, "--min-score", wrong)
                assert "min_score is from 0 to 1" in said
    asked = memspan("ask", bank, "otter heron lynx", "--as-of", "2020-12-31", "--max-new-tokens", 2, "--json").json
    assert [item["external_id"] for item in asked["evidence"]] == [OTTER]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--where", "legs"), "not of the form FIELD=VALUE"),
        (("--where", "{"), "is not JSON"),
        (("--where", "wings=2"), "no document has a field 'wings'"),
        (("--as-of", "yesterday"), "'yesterday' is not a date"),
        (("--where", '{"legs": {"~": 2}}'), "operator '~'"),
    ],
)
def test_a_filter_that_makes_no_sense_is_a_named_error(bank: Path, options: tuple[str, ...], message: str) -> None:
    assert message in failed("search", bank, "otter", *options)


def test_namespaces_of_the_command_line_do_not_see_each_other(bank: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("The otter has a secret.")
    assert memspan("add", bank, tmp_path / "secret.txt", "--namespace", "bob").code == 0
    secret = f"{tmp_path.name}/secret.txt"
    assert listed(bank, "-n", "bob") == [secret] and secret not in listed(bank)
    assert searched(bank, "secret otter", "-n", "bob") == [secret]
    assert secret not in searched(bank, "secret otter")
    assert "no document" in failed("rm", bank, secret)
    assert "namespace 'eve'" in memspan("ask", bank, "otter", "-n", "eve").err
    assert memspan("info", bank, "--json").json["namespaces"] == ["bob", "default"]


def test_reindex_makes_an_older_full_text_index_anew(bank: Path, no_model: None) -> None:
    assert memspan("info", bank, "--json").json["full_text"] == "current"
    with closing(TextBank.open(bank)) as opened:
        make_first_index(opened.catalog)
    assert f"memspan reindex {bank}" in memspan("info", bank, "--json").json["full_text"]
    before = searched(bank, "otters", "--selector", "lexical")
    values = memspan("reindex", bank, "--json").json
    assert values["documents"] > 1 and values["full_text"].startswith("terms ")
    assert memspan("info", bank, "--json").json["full_text"] == "current"
    assert searched(bank, "otters", "--selector", "lexical") == before != []
    assert clean(bank)


def test_compact_tells_what_it_freed(bank: Path, no_model: None) -> None:
    memspan("rm", bank, OTTER)
    values = memspan("compact", bank, "--json").json
    assert values["deleted_documents"] == 1 and values["freed_bytes"] > 0 and values["segments"] == 1
    assert memspan("compact", bank, "--secure").code == 0
    held = b"".join(path.read_bytes() for path in bank.rglob("*") if path.is_file())
    assert b"otter of Rome" not in held and b"heron of Oslo" in held
    assert clean(bank)


def test_secure_compaction_names_the_reader_it_waits_for(bank: Path, no_model: None) -> None:
    memspan("rm", bank, OTTER)
    reader = MemoryBank.open(bank)
    with reader.snapshot():
        assert "pid " in failed("compact", bank, "--secure", "--timeout", 0)
    reader.close()
    assert memspan("compact", bank, "--secure", "--timeout", 0).code == 0


def test_verify_finds_a_flipped_byte_and_repair_mends_it(bank: Path) -> None:
    assert clean(bank)
    (path,) = (bank / "segments").glob("*.content.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    done = memspan("verify", bank)
    assert done.code == 1 and path.name in done.out and "--repair" in done.err
    assert memspan("verify", bank, "--json").json["faults"][0]["repairable"] is True
    assert memspan("verify", bank, "--repair").code == 0
    assert clean(bank)


def test_reencode_moves_a_bank_to_another_model(bank: Path, plain: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    convert(str(plain), other, dtype=torch.float32, chunk_size=8, top_k_docs=2)
    assert "memspan reencode" in failed("search", bank, "otter", "--model", other)
    assert memspan("reencode", bank, "--model", other, "--json").json["updated"] == 3
    assert searched(bank, "otter of Rome", "--model", other)[0] == OTTER
    assert "encoded by another model" in failed("search", bank, "otter")
    assert clean(bank)


def test_documents_are_exported_and_imported_as_json_lines(bank: Path, tmp_path: Path) -> None:
    memspan("update", bank, OTTER, "--set", "legs=4")
    lines = memspan("export", bank, "-").out.splitlines()
    assert {json.loads(line)["external_id"] for line in lines} == {OTTER, HERON, LYNX}
    assert memspan("export", bank, tmp_path / "x.jsonl").code == 0
    assert (tmp_path / "x.jsonl").read_text().splitlines() == lines
    assert memspan("import", tmp_path / "x.jsonl", tmp_path / "copy").code == 0
    assert searched(tmp_path / "copy", "otter of Rome", "--where", "legs=4") == [OTTER]
    assert "exists" in failed("export", bank, tmp_path / "x.jsonl")


def test_a_whole_bank_is_exported_and_imported_as_one_file(bank: Path, tmp_path: Path) -> None:
    assert memspan("export", bank, tmp_path / "x.memspan").code == 0
    assert memspan("import", tmp_path / "x.memspan", tmp_path / "copy", "--json").json["documents"] == 3
    assert listed(tmp_path / "copy") == listed(bank)
    assert clean(tmp_path / "copy")
    assert "is not an empty folder" in failed("import", tmp_path / "x.memspan", bank)
    assert "does not exist" in failed("import", tmp_path / "y.memspan", tmp_path / "z")


def test_an_exported_bank_is_compared_with_the_model_that_is_named(bank: Path, plain: Path, tmp_path: Path) -> None:
    convert(str(plain), tmp_path / "other", dtype=torch.float32, chunk_size=8, top_k_docs=2)
    memspan("export", bank, tmp_path / "x.memspan")
    message = failed("import", tmp_path / "x.memspan", tmp_path / "copy", "--model", tmp_path / "other")
    assert "encoded by another model" in message and not MemoryBank.exists(tmp_path / "copy")
    assert memspan("import", tmp_path / "x.memspan", tmp_path / "copy").code == 0, "that of the environment fits"


def test_changes_lists_what_is_new_and_gone(bank: Path, no_model: None) -> None:
    found = memspan("changes", bank, "1h", "--json").json
    assert [one["kind"] for one in found["changes"]] == ["added"] * 3 and not found["more"]
    memspan("rm", bank, OTTER)
    memspan("update", bank, HERON, "--set", "legs=2")
    done = memspan("changes", bank, "--after-commit", found["commit"])
    rows = [line.split()[1:3] for line in done.out.splitlines()]
    assert done.code == 0 and rows == [["deleted", OTTER], ["changed", HERON]]
    assert "--after-commit" in done.err
    assert "more with --offset 2" in memspan("changes", bank, "2020", "--limit", 2).err
    assert memspan("changes", bank, "2020", "--namespace", "none", "--json").json["changes"] == []


def test_changes_wants_one_time(bank: Path, no_model: None) -> None:
    for options in ((), ("1h", "--after-commit", 1)):
        assert "say since when" in failed("changes", bank, *options)
    assert "as 7d or 12h" in failed("changes", bank, "soon")
    assert "last commit" in failed("changes", bank, "--after-commit", 10**6)
    assert memspan("changes", bank, "1h", "--limit", -1).code == 2
