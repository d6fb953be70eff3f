"""API keys on disk, and the commands that make them."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from memspan.cli import app
from memspan.errors import MemspanError
from memspan.serve.app import check_closed
from memspan.serve.keys import KeyFile
from memspan.serve.settings import ServeSettings


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "conf" / "keys.json")


def test_a_key_opens_what_it_was_made_for(keys: KeyFile) -> None:
    _, secret = keys.add("reader", ("read",), ("ann", "team"))
    _, admin = keys.add("boss", ("admin",))
    principal = keys.principal(secret)
    assert principal is not None and principal.may("read") and not principal.may("write")
    assert principal.default_namespace == "ann" and principal.may_enter("team") and not principal.may_enter("bob")
    boss = keys.principal(admin)
    assert boss is not None and boss.may("read") and boss.may("write") and boss.may_enter("bob")
    assert boss.default_namespace == "default"


@pytest.mark.parametrize("wrong", ["", "msk", "msk_", "msk__", "x", "msk_0123456789ab_x", "\udc80"])
def test_nothing_else_does(keys: KeyFile, wrong: str) -> None:
    key, secret = keys.add("reader", ("read",))
    for text in (wrong, secret[:-1], secret + "a", secret.upper(), f"msk_{key.id}_", key.digest):
        assert keys.principal(text) is None


def test_the_file_holds_hashes_alone_and_is_its_owners(keys: KeyFile) -> None:
    _, secret = keys.add("reader", ("read",))
    text = keys.path.read_text()
    assert secret not in text and secret.rpartition("_")[2] not in text
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600


def test_a_revoked_key_is_refused_by_who_has_the_file_open(keys: KeyFile) -> None:
    key, secret = keys.add("reader", ("read",))
    _, other = keys.add("other", ("read",))
    server = KeyFile(keys.path)
    assert server.principal(secret) is not None
    keys.revoke(key.id)
    assert server.principal(secret) is None and server.principal(other) is not None
    with pytest.raises(MemspanError, match="no key"):
        keys.revoke(key.id)
    keys.path.unlink()
    assert server.principal(other) is None


@pytest.mark.parametrize("text", ["", "{", '{"version": 2, "keys": []}', '{"version": 1, "keys": [{"id": "x"}]}'])
def test_a_damaged_file_opens_nothing(keys: KeyFile, text: str) -> None:
    keys.add("reader", ("read",))
    keys.path.write_text(text)
    with pytest.raises(MemspanError, match="cannot be read"):
        keys.principal("msk_x_y")


def test_wrong_scopes_and_namespaces_are_refused(keys: KeyFile) -> None:
    for scopes, namespaces in (((), ()), (("reed",), ()), (("read",), ("",))):
        with pytest.raises(MemspanError):
            keys.add("x", scopes, namespaces)
    assert keys.stored() == []


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "example.org"])
def test_a_server_is_never_open_to_other_machines(keys: KeyFile, host: str) -> None:
    settings = ServeSettings(host=host)
    for given in (None, keys):
        with pytest.raises(MemspanError, match="memspan keys add"):
            check_closed(settings, given)
    keys.add("reader", ("read",))
    check_closed(settings, keys)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_this_machine_alone_needs_no_keys(host: str) -> None:
    check_closed(ServeSettings(host=host), None)


@pytest.mark.parametrize(
    "wrong",
    [{"port": 70_000}, {"max_batch": 0}, {"timeout": 0}, {"requests_per_minute": 0}, {"cors_origins": ("*",)}],
)
def test_settings_are_checked(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ServeSettings(**wrong)


def test_the_command_makes_lists_and_revokes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    run = CliRunner().invoke
    made = json.loads(run(app, ["keys", "add", "laptop", "--scope", "write", "-n", "ann", "--json"]).stdout)
    assert KeyFile(tmp_path / "memspan" / "keys.json").principal(made["key"]) is not None
    listed = run(app, ["keys", "list", "--json"])
    assert json.loads(listed.stdout) == [{name: made[name] for name in made if name != "key"}]
    assert made["key"] not in listed.stdout
    assert run(app, ["keys", "revoke", made["id"]]).exit_code == 0
    assert json.loads(run(app, ["keys", "list", "--json"]).stdout) == []
    refused = run(app, _serve("--keys", str(tmp_path / "none.json")))
    assert refused.exit_code == 1 and "memspan keys add" in refused.stderr


def test_the_command_refuses_to_be_open_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("memspan.cli.models.load", lambda *_, **__: pytest.fail("a model was loaded"))
    refused = CliRunner().invoke(app, _serve("--host", "0.0.0.0"))
    assert refused.exit_code == 1 and "memspan keys add" in refused.stderr


def _serve(*options: str) -> list[str]:
    return ["serve", "no.bank", *options]
