"""Where a bank is, and where this machine keeps what it has fetched: of models, and of banks that were published."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from memspan.errors import BankError, BudgetError
from memspan.files import CATALOG, LATEST

KEPT_BANKS = "20GB"
"""Of encoded memories that evaluations keep for each other, unless they are given another size."""

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
# What `Path` makes of a URL: one of both slashes is gone. Letters of Windows' drives are shorter.
_URL_AS_PATH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:[\\/](?![\\/])")


@dataclass(frozen=True, slots=True)
class BankPlace:
    """A bank's folder, or the URL at which a bank was published.

    Attributes:
        name: the folder or the URL, as it was given.
        cache: folder for what is fetched. None: `cache_folder()`. Published banks are in `banks` there.
        cache_budget: bytes that one bank may take there. None: as `$MEMSPAN_CACHE_BUDGET` says, or any number.

    Raises:
        BankError: a URL was given as a `Path`, which drops one of its slashes; or the name is empty.
    """

    name: str
    cache: Path | None = None
    cache_budget: int | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise BankError("the name of the bank is empty; name its folder (. is this folder)")
        if _URL_AS_PATH.match(self.name) and not os.path.lexists(self.name):
            raise BankError(f"{self.name} is no folder; if it is to be a URL, write it as text and with ://")

    @classmethod
    def of(
        cls,
        place: str | os.PathLike[str],
        cache: str | os.PathLike[str] | None = None,
        cache_budget: int | str | None = None,
    ) -> BankPlace:
        """What was given as a place; the budget may be written as "10GB".

        Raises:
            BankError, BudgetError: it is none.
        """
        found = place if isinstance(place, BankPlace) else cls(os.fspath(place))
        most = parse_bytes(cache_budget) if isinstance(cache_budget, str) else cache_budget
        return cls(
            found.name,
            found.cache if cache is None else Path(cache),
            found.cache_budget if most is None else most,
        )

    def __fspath__(self) -> str:
        return self.name

    def __str__(self) -> str:
        return self.name

    @property
    def is_published(self) -> bool:
        """Whether a bank was published there, or may have been: a URL, or a folder with what publishing writes."""
        return "://" in self.name or ((self.folder / LATEST).is_file() and not (self.folder / CATALOG).is_file())

    @property
    def folder(self) -> Path:
        """The folder, if it is one."""
        return Path(self.name).expanduser()

    @property
    def new_folder(self) -> Path:
        """The folder, for a new bank.

        Raises:
            BankError: it is a URL.
        """
        if "://" in self.name:
            raise BankError(
                f"{self.name} is a URL; make the bank in a folder of this machine, and then: memspan publish FOLDER URL"
            )
        return self.folder

    @property
    def cache_root(self) -> Path:
        """The folder for what is fetched of published banks."""
        return (cache_folder() if self.cache is None else self.cache.expanduser()) / "banks"

    @property
    def most_bytes(self) -> int | None:
        """The budget that holds.

        Raises:
            BudgetError: `$MEMSPAN_CACHE_BUDGET` is no size.
        """
        named = os.environ.get("MEMSPAN_CACHE_BUDGET")
        return parse_bytes(named) if self.cache_budget is None and named else self.cache_budget


def cache_folder() -> Path:
    """Where fetched and converted files are kept: `$MEMSPAN_CACHE`, else `memspan` in the user's cache folder."""
    named = os.environ.get("MEMSPAN_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memspan"


def quoted(name: object) -> str:
    """A path, URL or name as a shell takes it, for a command that a message names."""
    text = str(name)
    if os.name != "nt":
        return shlex.quote(text)
    return f'"{text}"' if re.search(r"[^\w.:\\/~+@%=,-]", text) or not text else text


def parse_bytes(text: str) -> int:
    """A size as people write it: 6GB (10**9 bytes each), 512MiB (2**20 each), 100000.

    Raises:
        BudgetError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", text.upper())
    if found is None or found[2] not in _UNITS or not float(found[1]):
        raise BudgetError(f"a memory budget is a size as 6GB or 512MiB, not {text!r}")
    return int(float(found[1]) * _UNITS[found[2]])


def gigabytes(num_bytes: int, *, up: bool = False) -> str:
    """A size for messages, rounded to the nearest hundredth, or up."""
    hundredths = -(-num_bytes // 10**7) if up else round(num_bytes / 10**7)
    return f"{hundredths / 100:.2f} GB"
