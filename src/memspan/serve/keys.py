"""API keys: who may do what, in which namespaces. On disk there are hashes only."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import os
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from memspan.bank.catalog import DEFAULT_NAMESPACE
from memspan.bank.texts import check_namespace
from memspan.errors import MemspanError
from memspan.files import write_text
from memspan.places import quoted

SCOPES = ("read", "write", "admin")
_PREFIX = "msk"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Key:
    """A key as it is stored.

    Attributes:
        id: public name of the key; a part of its secret text.
        name: for people.
        digest: sha256 of the secret text. It has 256 random bits, so no salt and no slow hash is needed.
        scopes: of `SCOPES`; each includes those before it.
        namespaces: the first is used where a request names none; empty: all.
        created: ISO 8601, UTC.
    """

    id: str
    name: str
    digest: str
    scopes: tuple[str, ...]
    namespaces: tuple[str, ...]
    created: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "scopes", tuple(self.scopes))
        object.__setattr__(self, "namespaces", tuple(self.namespaces))
        unknown = sorted(set(self.scopes) - set(SCOPES))
        if unknown or not self.scopes:
            raise MemspanError(f"scopes are {', '.join(SCOPES)}, at least one, not {', '.join(unknown) or 'none'}")
        for namespace in self.namespaces:
            check_namespace(namespace)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who makes a request.

    Attributes:
        id: of the key; of an open server's clients, their address.
        scopes, namespaces: as of `Key`.
    """

    id: str
    scopes: frozenset[str]
    namespaces: tuple[str, ...] = ()

    def may(self, scope: str) -> bool:
        return any(scope in SCOPES[: SCOPES.index(own) + 1] for own in self.scopes)

    def may_enter(self, namespace: str) -> bool:
        return not self.namespaces or namespace in self.namespaces

    @property
    def default_namespace(self) -> str:
        return self.namespaces[0] if self.namespaces else DEFAULT_NAMESPACE


class KeyFile:
    """A file of keys, readable by its owner alone. Changes are seen by running servers at their next request.

    Raises:
        MemspanError: the file cannot be read or written, or is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self._seen: tuple[int, int, int] | None = None
        self._keys: dict[str, Key] = {}

    def stored(self) -> list[Key]:
        """The keys now, oldest first; none where there is no file."""
        return list(self._read().values())

    def add(self, name: str, scopes: tuple[str, ...], namespaces: tuple[str, ...] = ()) -> tuple[Key, str]:
        """Make a key. Its secret text is returned here, and never again."""
        key_id = secrets.token_hex(6)
        secret = f"{_PREFIX}_{key_id}_{secrets.token_urlsafe(32)}"
        now = datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="seconds")
        key = Key(key_id, name, _digest(secret), scopes, namespaces, now)
        with self._locked():
            self._write([*self.stored(), key])
        return key, secret

    def revoke(self, key_id: str) -> None:
        """Take a key out of use.

        Raises:
            MemspanError: there is none of this id.
        """
        with self._locked():
            keys = self.stored()
            left = [key for key in keys if key.id != key_id]
            if len(left) == len(keys):
                raise MemspanError(
                    f"there is no key {key_id!r} in {self.path}; see: memspan keys list --keys {quoted(self.path)}"
                )
            self._write(left)

    def principal(self, secret: str) -> Principal | None:
        """Whose secret text it is; None: nobody's. The time it takes says nothing of the stored digests."""
        _, _, rest = secret.partition("_")
        key = self._read().get(rest.partition("_")[0])
        digest = _digest(secret)
        if not hmac.compare_digest(digest, key.digest if key else _digest("")) or key is None:
            return None
        return Principal(key.id, frozenset(key.scopes), key.namespaces)

    def _read(self) -> dict[str, Key]:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            self._seen, self._keys = None, {}
            return self._keys
        except OSError as error:
            raise MemspanError(f"the keys in {self.path} cannot be read: {error}") from error
        seen = (status.st_mtime_ns, status.st_size, status.st_ino)
        if seen != self._seen:
            try:
                found = json.loads(self.path.read_text("utf-8"))
                if found["version"] != _VERSION:
                    raise ValueError(f"its version is {found['version']!r}")
                keys = [Key(**entry) for entry in found["keys"]]
            except (OSError, ValueError, TypeError, KeyError) as error:
                raise MemspanError(f"the keys in {self.path} cannot be read ({error}); restore the file") from error
            self._keys, self._seen = {key.id: key for key in keys}, seen
        return self._keys

    def _locked(self) -> FileLock:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MemspanError(f"{self.path} cannot be written: {error}") from error
        return FileLock(self.path.with_name(f"{self.path.name}.lock"))

    def _write(self, keys: list[Key]) -> None:
        """Put a new file (made with mode 600) in the place of the old."""
        text = json.dumps({"version": _VERSION, "keys": [dataclasses.asdict(key) for key in keys]}, indent=1)
        try:
            write_text(self.path, text, private=True)
        except OSError as error:
            raise MemspanError(f"{self.path} cannot be written: {error}") from error


def default_key_file() -> Path:
    """Where keys are kept if no file is named."""
    configured = os.environ.get("XDG_CONFIG_HOME")
    return (Path(configured) if configured else Path.home() / ".config") / "memspan" / "keys.json"


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()
