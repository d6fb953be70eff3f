"""What is chosen by a name: selectors, similarities, file formats. Each kind is a `Registry`, to which others may add.

Two ways to add an entry, from a program or from a package that is installed beside memspan:

    SELECTORS.register("mine", MySelector())        # before it is asked for

    [project.entry-points."memspan.selectors"]      # pyproject.toml: every process finds it, the commands too
    mine = "my_package.module:MySelector"

An entry is an object, a class that is called for one, or "module:name" of either, which is imported when the entry is
asked for, as an entry point is.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from memspan.errors import PluginError, UnknownName

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries of one kind by name, in the order they were registered; those of other packages follow.

    Args:
        kind: of the entries, for messages.
        group: of the entry points.
        protocols: what an entry must have: all of one of them (or, of a class that is no protocol, be one).
    """

    def __init__(self, kind: str, group: str, *protocols: type) -> None:
        self.kind, self.group, self._protocols = kind, group, protocols
        self._registered: dict[str, T | EntryPoint] = {}
        self._checked: dict[str, T] = {}

    def register(self, name: str, entry: T | type[T] | str) -> None:
        """Add an entry.

        Raises:
            PluginError: the name is taken, or the entry lacks what its kind needs.
        """
        if name in self._registered:
            raise PluginError(f"there is a {self.kind} {name!r} already; register this one by another name")
        if isinstance(entry, str):
            self._registered[name] = EntryPoint(name, entry, self.group)
        else:
            self._registered[name] = self._made(name, entry)

    def __getitem__(self, name: str) -> T:
        """
        Raises:
            UnknownName: there is no such entry.
            PluginError: several have this name, or its package's entry cannot be imported or lacks something.
        """
        if name not in self._checked:
            self._checked[name] = self._found(name)
        return self._checked[name]

    def __contains__(self, name: str) -> bool:
        return name in self._registered or name in _points(self.group)

    def __iter__(self) -> Iterator[str]:
        yield from dict.fromkeys((*self._registered, *_points(self.group)))

    def none_of(self, names: Iterable[str], name: str) -> UnknownName:
        """The error of a name that is none of `names`."""
        return UnknownName(f"{self.kind} must be one of {', '.join(names)}, not {name!r}")

    def _found(self, name: str) -> T:
        given = [*([self._registered[name]] if name in self._registered else []), *_points(self.group).get(name, ())]
        if not given:
            raise self.none_of(self, name)
        if len(given) > 1:
            raise PluginError(
                f"there are several {self.group} of the name {name!r}: {', '.join(map(_origin, given))}; leave out all "
                "but one"
            )
        if not isinstance(given[0], EntryPoint):
            return given[0]
        try:
            entry = given[0].load()
        except Exception as error:
            what = f"the {self.kind} {name!r} cannot be imported from {_origin(given[0])} ({error!r})"
            raise PluginError(f"{what}; mend or uninstall it") from error
        return self._made(name, entry)

    def _made(self, name: str, entry: Any) -> T:
        try:
            entry = entry() if isinstance(entry, type) else entry
        except TypeError as error:
            raise PluginError(f"the {self.kind} {name!r} cannot be made ({error}); register an object") from error
        lacking = min((_lacking(entry, protocol) for protocol in self._protocols), key=len)
        if lacking:
            shapes = " or ".join(f"{protocol.__module__}.{protocol.__qualname__}" for protocol in self._protocols)
            raise PluginError(f"the {self.kind} {name!r} lacks {', '.join(lacking)}; give it what {shapes} has")
        return entry


@cache
def _points(group: str) -> Mapping[str, list[EntryPoint]]:
    """The entry points of a group by name; what several packages give stands there several times."""
    found: dict[str, list[EntryPoint]] = defaultdict(list)
    for point in entry_points(group=group):
        found[point.name].append(point)
    return dict(found)


def _origin(entry: object) -> str:
    if not isinstance(entry, EntryPoint):
        return f"{type(entry).__module__}.{type(entry).__qualname__}"
    return f"{entry.value} of {entry.dist.name}" if entry.dist else entry.value


def _lacking(entry: object, protocol: type) -> list[str]:
    """Attributes and methods of a protocol that an entry has not."""
    if not getattr(protocol, "_is_protocol", False):
        return [] if isinstance(entry, protocol) else [f"the class {protocol.__name__}"]
    bases = [base for base in protocol.__mro__ if getattr(base, "_is_protocol", False)]
    methods = [n for base in bases for n, value in vars(base).items() if callable(value) and n[0] != "_"]
    attributes = [n for base in bases for n in inspect.get_annotations(base)]
    has_not = [name for name in methods if not callable(getattr(entry, name, None))]
    return has_not + [name for name in attributes if not hasattr(entry, name)]
