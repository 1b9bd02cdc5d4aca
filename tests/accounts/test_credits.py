"""Amounts as people write them are exact, both ways."""

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.accounts.credits import MICROCREDITS, MOST_CREDITS, format_credits, parse_credits

MOST = MOST_CREDITS * MICROCREDITS
AMOUNTS = st.integers(-MOST, MOST)


@settings(deadline=None)
@given(AMOUNTS)
def test_an_amount_comes_back(amount: int) -> None:
    assert parse_credits(format_credits(amount)) == amount


@settings(deadline=None)
@given(AMOUNTS)
def test_an_amount_is_written_as_the_decimal_it_is(amount: int) -> None:
    text = format_credits(amount)
    assert Decimal(text) * MICROCREDITS == amount
    assert not text.endswith(".")
    assert "." not in text or not text.endswith("0")


@settings(deadline=None)
@given(st.decimals(-MOST_CREDITS, MOST_CREDITS, places=6))
def test_a_decimal_is_read_exactly(amount: Decimal) -> None:
    assert parse_credits(f"{amount:f}") == amount * MICROCREDITS


@pytest.mark.parametrize(
    ("text", "amount"),
    [("12", 12_000_000), ("0.04", 40_000), (" -3.5 ", -3_500_000), ("0.000001", 1), ("007", 7_000_000), ("-0", 0)],
)
def test_examples(text: str, amount: int) -> None:
    assert parse_credits(text) == amount


@pytest.mark.parametrize(
    "text",
    ["", " ", "x", "1e3", "nan", "inf", "1_000", "1,5", ".5", "5.", "+1", "--1", "0x10", "0.0000001", "\u0661", "1 2"],
)
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no amount of credits"):
        parse_credits(text)


def test_there_is_a_most() -> None:
    assert parse_credits(str(MOST_CREDITS)) == MOST
    for text in (f"{MOST_CREDITS}.000001", f"-{MOST_CREDITS + 1}", "999999999999"):
        with pytest.raises(ValueError, match="10,000,000"):
            parse_credits(text)


@settings(deadline=None)
@given(st.text())
def test_any_text_is_an_amount_or_a_sentence(text: str) -> None:
    try:
        amount = parse_credits(text)
    except ValueError as error:
        told = str(error)
    else:
        told = "an amount."
        assert abs(amount) <= MOST
    assert told.endswith(".")
