"""Protects options with several values: how they are split, and which are refused."""

import click
import pytest
from renormlite.cli.comma_list import CommaList


@pytest.mark.parametrize(
    ("text", "values"),
    [("a", ("a",)), ("b,a", ("b", "a")), (" a , b ", ("a", "b")), (("a", "b"), ("a", "b"))],
)
def test_values_keep_their_order(text: object, values: tuple[str, ...]) -> None:
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
def test_wrong_usage_is_refused_in_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(click.BadParameter, match=sentence):
        CommaList("letter", ("a", "b")).convert(text, None, None)
