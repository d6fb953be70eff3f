"""How ranks of several machines reach each other."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from memspan.routing import ranks
from memspan.routing.ranks import Ranks, outer_interface

INTERFACES = {"lo": ["127.0.0.1", "::1"], "docker0": ["172.17.0.1"], "ib 0": ["10.0.0.5", "fe80::1%ib 0"]}


@pytest.mark.parametrize("place", ["127.0.0.1", "127.0.1.1", "localhost", "", "no such machine", "256.1.1.1"])
def test_loopback_and_unknown_places_name_no_interface(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("MASTER_ADDR", place)
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert outer_interface() is None
    monkeypatch.delenv("MASTER_ADDR")
    assert outer_interface() is None


@pytest.mark.parametrize(("port", "expected"), [("29500", "ib 0"), ("0", "ib 0"), ("port", None), ("", None)])
def test_a_port_that_is_none_is_left_to_joining(
    monkeypatch: pytest.MonkeyPatch, port: str, expected: str | None
) -> None:
    _reached_from(monkeypatch, "10.0.0.5")
    monkeypatch.setenv("MASTER_PORT", port)
    assert outer_interface() == expected


@pytest.mark.parametrize(
    ("own", "expected"),
    [("10.0.0.5", "ib 0"), ("172.17.0.1", "docker0"), ("fe80::1%ib 0", "ib 0"), ("10.9.9.9", None), ("::1", None)],
)
def test_the_interface_is_that_of_the_way_to_rank_0(
    monkeypatch: pytest.MonkeyPatch, own: str, expected: str | None
) -> None:
    _reached_from(monkeypatch, own)
    assert outer_interface() == expected


@pytest.mark.parametrize(("given", "expected"), [(None, "ib 0"), ("docker0", "docker0")])
def test_the_users_choice_of_an_interface_holds(
    monkeypatch: pytest.MonkeyPatch, given: str | None, expected: str
) -> None:
    _reached_from(monkeypatch, "10.0.0.5")
    monkeypatch.setattr(os, "environ", {name: x for name, x in os.environ.items() if name != "GLOO_SOCKET_IFNAME"})
    if given:
        os.environ["GLOO_SOCKET_IFNAME"] = given
    found: list[str] = []
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: found.append(os.environ["GLOO_SOCKET_IFNAME"]))
    monkeypatch.setattr(dist, "get_rank", lambda _: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda _: 1)
    Ranks.join(torch.device("cpu"))
    assert found == [expected]


def _reached_from(monkeypatch: pytest.MonkeyPatch, own: str) -> None:
    """A machine with some interfaces, which reaches rank 0 from one of its addresses."""

    class Probe(SimpleNamespace):
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None: ...

        def connect(self, address: Any) -> None: ...

        def getsockname(self) -> tuple[str, int]:
            return own, 1

    found = {name: [SimpleNamespace(address=one) for one in addresses] for name, addresses in INTERFACES.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)
    monkeypatch.setattr(ranks.socket, "socket", lambda *_: Probe())
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, socket.SOCK_DGRAM, 0, "", ("", 0))])
    monkeypatch.setenv("MASTER_ADDR", "rank-0")
    monkeypatch.setenv("MASTER_PORT", "29500")
