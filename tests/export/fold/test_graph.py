"""Protects changes of a graph: every value knows its readers, and nothing else changes."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
from renormlite.export.fold.fold import _first_wrong
from renormlite.export.fold.graph import Call, Graph, Slot


def op(name: str) -> SimpleNamespace:
    return SimpleNamespace(name=name)


def network() -> tuple[Graph, dict[str, Call]]:
    """Return x -> a -> (b, c), c(a, x, a) -> output; b is an output too, and d reads it."""
    graph, calls = Graph("net"), {}

    def add(name, *inputs):
        values = [calls[i].output for i in inputs]
        calls[name] = graph.add(Call(op(name), values), [((None, 3), "float32")])

    add("x")
    add("a", "x")
    add("b", "a")
    add("d", "b")
    add("c", "a", "x", "a")
    graph.inputs = [calls["x"].output]
    graph.outputs = [calls["c"].output, calls["b"].output, calls["d"].output]
    for value in graph.outputs:
        value.is_output = True
    return graph, calls


def consistent(graph: Graph) -> bool:
    """Whether every reader of a value lists it, and no other value has that place."""
    for call in graph.calls():
        for value in call.outputs:
            if any(reader.inputs[slot] is not value for reader, slot in value.uses):
                return False
        for slot, value in enumerate(call.inputs):
            if value.uses.count((call, slot)) != 1:
                return False
    return all(value.is_output for value in graph.outputs)


def test_calls_come_after_those_that_they_read():
    graph, calls = network()
    order = [call.name for call in graph.calls()]
    assert sorted(order) == ["a", "b", "c", "d", "x"]
    for call in graph.calls():
        assert all(order.index(v.producer.name) < order.index(call.name) for v in call.inputs)
    assert [call.number for call in calls.values()] == [0, 1, 2, 3, 4]
    assert consistent(graph)


def test_a_call_is_inserted_in_front_of_all_readers():
    graph, calls = network()
    new = graph.insert_after(calls["a"].output, op("new"))
    assert consistent(graph)
    assert calls["a"].output.uses == [(new, 0)]
    assert [value.producer.name for value in calls["c"].inputs] == ["new", "x", "new"]
    assert calls["b"].inputs == [new.output]
    assert new.number == -1
    assert new.output.shape == (None, 3)


def test_an_inserted_call_becomes_the_output():
    graph, calls = network()
    new = graph.insert_after(calls["b"].output, op("new"))
    assert consistent(graph)
    assert [value.producer.name for value in graph.outputs] == ["c", "new", "d"]
    assert not calls["b"].output.is_output
    assert new.output.is_output


def test_removing_a_call_undoes_its_insertion():
    for name in "abcd":
        graph, calls = network()
        before = {n: [v.producer.name for v in c.inputs] for n, c in calls.items()}
        graph.remove(graph.insert_after(calls[name].output, op("new")))
        assert consistent(graph)
        assert {n: [v.producer.name for v in c.inputs] for n, c in calls.items()} == before
        assert [value.producer.name for value in graph.outputs] == ["c", "b", "d"]


def test_names_are_unique():
    graph = Graph("net")
    found = [graph.unique_name("conv", "block") for _ in range(4)]
    assert found == ["conv", "block_conv", "block_conv_1", "block_conv_2"]
    assert [graph.unique_name("dense") for _ in range(3)] == ["dense", "dense_1", "dense_2"]


def test_of_several_calls_of_a_layer_the_first_gets_its_name():
    graph = Graph("net")
    first, second = Call(op("dense"), []), Call(op("dense"), [])
    assert graph.own_name(first, "dense") == "dense"
    assert graph.own_name(second, "dense") == "dense_1"
    assert graph.own_name(first, "dense") == "dense"
    assert graph.own_name(None, "other") == "other"
    assert graph.own_name(first, "other") == "other_1"


def test_arguments_are_given_in_the_places_of_the_inputs():
    plain = Call(op("f"), [])
    assert plain.arguments(["x"]) == (("x",), {})
    call = Call(op("f"), [], ([Slot(1), 5],), {"mask": Slot(0), "axis": -1})
    assert call.arguments(["x", "y"]) == ((["y", 5],), {"mask": "x", "axis": -1})


@pytest.mark.parametrize("count", range(1, 9))
def test_the_first_wrong_step_is_found_by_bisection(count):
    """Prefixes of up to `wrong` steps are right; a search asks for no more than it needs."""
    for wrong in range(count):
        asked = []

        def is_right(steps, wrong=wrong, asked=asked):
            asked.append(steps)
            return steps <= wrong

        assert _first_wrong(count, is_right) == wrong
        assert len(asked) <= (count - 1).bit_length()
        assert all(a != b for a, b in itertools.combinations(asked, 2))
