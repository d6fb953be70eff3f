"""Texts about another key than the question's: which are told apart, and which never are."""

from __future__ import annotations

import random
import uuid

import pytest

from memspan.text.statements import about_other_keys

FIRST = "3fa85f64-5717-4562-b3fc-2c963f66afa6"
SECOND = "9b2e1c77-0d4f-4a10-8c55-1f0e6d7a4b21"


@pytest.mark.parametrize(
    ("question", "texts", "others"),
    [
        ("What is the token of " + FIRST.upper(), [f"The token of {FIRST} is 1.", f"The token of {SECOND} is 2."], [1]),
        ("Where was order 48213 sent?", ["Order 48215 was sent to Rome.", "Order 48213 was sent to Bern."], [0]),
        ("Where is order 48213?", ["Yes. Order 48213 is paid.", "No. Order 48215 came back. It was sent."], [1]),
        (
            "Who has ticket ABC-123?",
            ["Ann has ticket ABC-123.", "Ticket ABC-124: Bob", "ticket ABC-1234 of Cyd"],
            [1, 2],
        ),
        (
            "What is the number for light-snail?",
            ["the magic number for light-snail: 7", "the magic number for green-tree: 8"],
            [1],
        ),
        ("Is build 1.2.3-rc4 out?", ["Build 1.2.3-rc4 is out.", "Build 1.2.3-rc5 is not."], [1]),
        ("Wo ist Paket 48213?", ["Das Paket 48213 liegt in Bern.", "Das Paket 48219 liegt in Rom."], [1]),
        ("¿Dónde está el paquete 48213?", ["El paquete 48213 está aquí.", "El paquete 48219 está allí."], [1]),
        ("What of order４８２１３?", ["Order 48213 came."], []),
        ("Where was order ４８２１３ sent?", ["Order 48213: Bern", "Order 48215: Rome"], [1]),
    ],
    ids=str,
)
def test_what_is_said_of_another_key_is_found(question: str, texts: list[str], others: list[int]) -> None:
    assert about_other_keys(question, texts) == others


@pytest.mark.parametrize(
    ("question", "texts"),
    [
        ("Compare order 48213 and order 48215.", ["Order 48213 was sent.", "Order 48215 was sent."]),
        (
            "Where does the buyer of order 48213 live?",
            ["Order 48213 is Ann's.", "The buyer Ann lives in Bern, order 48215."],
        ),
        ("What became of order 48213?", ["Order 48213 was sent.", "Order 48215 replaces order 48213."]),
        ("What became of order 48213?", ["Order 48215 was sent.", "Order 48217 was sent."]),
        ("Where was order 48213 sent?", ["Order 48213 is paid.", "Order 48215 came back. It was sent twice."]),
        ("What became of order 48213?", ["Order 48213 was sent.", "Ann paid 17 euros.", "Bern, 3012"]),
        ("What became of order 48213?", ["Order 48213 was sent.", "Postcode 30121 is Bern's."]),
        ("Who won the cup in 2019?", ["Ann won the cup in 2019.", "Bob won the cup in 2018."]),
        ("What is the price of Amber?", ["The price of Amber is 289.", "The price of Beryl is 199."]),
        ("Who is the 4th earl's father?", ["The 4th earl was Ann's son.", "The 3rd earl was Bob."]),
        ("What is the state-of-the-art?", ["It is the state-of-the-art.", "It is the turn-of-the-century."]),
        ("订单48213在哪里", ["订单48213在伯尔尼", "订单48215在罗马"]),
        ("", ["Order 48213", "Order 48215"]),
        ("Where is order 48213?", []),
        ("Where is order 48213?", [""]),
        ("Where is order 48213?", ["Order 48213"]),
        ("Where is order 48213?", ["Order 48213 was sent.", "Order 48213 was sent."]),
        ("48213", ["48213", "48215"]),
    ],
)
def test_what_may_help_is_never_left_out(question: str, texts: list[str]) -> None:
    assert about_other_keys(question, texts) == []


@pytest.mark.parametrize("seed", range(20))
def test_of_many_ids_the_one_asked_for_stays(seed: int) -> None:
    generator = random.Random(seed)
    ids = [str(uuid.UUID(int=generator.getrandbits(128), version=4)) for _ in range(8)]
    texts = [
        f"Hay before it. One of the magic numbers for {one} is: {generator.randint(10**6, 10**7)}. Hay." for one in ids
    ]
    asked = generator.randrange(8)
    wanted = [place for place in range(8) if place != asked]
    assert about_other_keys(f"What is the magic number for {ids[asked]}?", texts) == wanted
