"""Protects options that take several values: what is split, and what is wrong usage."""

import click
import pytest
from renormlite.cli.comma_list import CommaList


@pytest.mark.parametrize(
    ("text", "values"),
    [("a", ("a",)), ("b,a", ("b", "a")), (" a , b ", ("a", "b")), (("a", "b"), ("a", "b"))],
)
def test_values_come_in_the_order_given(text: object, values: tuple[str, ...]) -> None:
    assert CommaList("letter").convert(text, None, None) == values


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "expected one letter"),
        ("a,,b", "expected one letter"),
        ("a,b,a", "'a' is given twice"),
        ("a,z", "there is no letter 'z'; there are a, b"),
    ],
)
def test_wrong_usage_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(click.BadParameter, match=sentence):
        CommaList("letter", ("a", "b")).convert(text, None, None)
