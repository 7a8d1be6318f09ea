"""Protects the algebra of affines, which the whole fold uses."""

import numpy as np
import pytest
from renormlite.export.fold.affine import Affine, join
from renormlite.export.fold.passes import ways
from renormlite.export.fold.rules.commute import through_reshape

RNG = np.random.default_rng(0)


def random_affine(size: int = 5, axis: int = 2) -> Affine:
    return Affine(
        RNG.uniform(0.5, 2, size) * RNG.choice([-1, 1], size), RNG.normal(size=size), axis
    )


def test_composition_and_inverse():
    first, second = random_affine(), random_affine()
    x = RNG.normal(size=(3, 4, 5))
    both = second.after(first)
    np.testing.assert_allclose(both.apply(x), second.apply(first.apply(x)), rtol=1e-14)
    assert first.inverse().after(first).matches(Affine.identity(2, 5)) or np.allclose(
        first.inverse().apply(first.apply(x)), x, rtol=1e-14
    )


def test_scale_times_its_reciprocal_leaves_no_operation():
    scale = Affine.of(RNG.uniform(1e-3, 1e3, 1000), 0.0, axis=1)
    assert scale.inverse().after(scale).is_identity


@pytest.mark.parametrize(
    ("scale", "shift"),
    [([1, 0], [0, 0]), ([1, 1e-30], [0, 1]), ([1, np.nan], [0, 0]), ([1, 1], [0, 1e6])],
)
def test_no_inverse_where_undoing_would_lose_the_value(scale, shift):
    assert Affine.of(scale, shift).inverse() is None


def test_split_is_undone_by_join():
    affine = random_affine(7)
    parts = affine.split([2, 4, 1])
    assert [part.size for part in parts] == [2, 4, 1]
    assert join(parts).matches(affine)


def test_only_a_uniform_affine_can_change_its_axis():
    assert random_affine().on_axis(1, 5) is None
    there = Affine.of(2.0, 3.0, axis=3, size=4).on_axis(1, 7)
    assert (there.axis, there.size) == (1, 7)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="same length"):
        Affine(np.ones(2), np.zeros(3), 1)


@pytest.mark.parametrize(
    "scale", [[1.5, -2.0, 0.3], [0.0, 1.5, -1.0], [1.0, 1.0, 1.0], [0.0, 0, 0]]
)
@pytest.mark.parametrize("shift", [[0.5, -1.0, 2.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
def test_every_split_of_an_affine_joins_to_the_original(scale, shift):
    affine = Affine.of(scale, shift, axis=1)
    count = 0
    for way in ways(affine):
        x = RNG.normal(size=(4, 3))
        y = x
        for part in (way.backward, way.stays, way.forward):
            y = y if part is None else part.apply(y)
        np.testing.assert_allclose(y, affine.apply(x), atol=1e-14, err_msg=str(way))
        count += 1
    assert count == (8 if affine.scales and affine.shifts else 2)


@pytest.mark.parametrize(
    ("source", "target", "axis"),
    [
        ((None, 3, 4, 5), (None, 60), 3),
        ((None, 3, 4, 5), (None, 12, 5), 3),
        ((None, 3, 4, 5), (None, 5, 12), 2),
        ((None, 6, 5), (None, 2, 3, 5), 1),
        ((None, 6, 5), (None, 6, 5, 1), 1),
        ((None, None, 5), (None, 7, None, 5), 2),
        ((None, 3, 4), (None, 4), 2),
    ],
)
def test_affine_of_a_reshaped_tensor(source, target, axis):
    affine = random_affine(source[axis], axis)
    moved = through_reshape(affine, source, target)
    if moved is None:
        return
    x = RNG.normal(size=[2, *(size or 7 for size in source[1:])])
    # An open size is what is left; where there is none, the batch is.
    shape = [2 if None in target[1:] else -1, *(size or -1 for size in target[1:])]
    np.testing.assert_array_equal(moved.apply(x.reshape(shape)), affine.apply(x).reshape(shape))


def test_reshape_of_the_batch_axis_is_detected():
    assert through_reshape(random_affine(3, 1), (2, 3, 4), (6, 4)) is None


def test_reshape_that_mixes_channels_is_detected():
    assert through_reshape(random_affine(4, 2), (None, 6, 4), (None, 4, 6)) is None
    assert through_reshape(random_affine(6, 1), (None, 6), (None, 2, 3)) is None
    flat = Affine(np.repeat([1.0, 2.0, 3.0], 4), np.zeros(12), 1)
    back = through_reshape(flat, (None, 12), (None, 3, 4))
    assert (back.axis, list(back.scale)) == (1, [1.0, 2.0, 3.0])


@pytest.mark.parametrize(("shift", "fits"), [(16.0, True), (-16.0, True), (16.001, False)])
@pytest.mark.parametrize("magnitude", [None, 0.25, 8.0])
def test_an_inverse_may_lose_four_bits(shift, fits, magnitude):
    """The shift may be 16 times as large as the scaled numbers, of the magnitude 1 if unknown."""
    size = magnitude or 1.0
    affine = Affine.of([2.0, 1.0], [0.0, 0.0], 1, magnitude=magnitude)
    affine = Affine(affine.scale, np.array([0.0, shift * size]), 1, affine.magnitude)
    inverse = affine.inverse()
    assert (inverse is not None) is fits
    if inverse is not None:
        assert list(inverse.scale) == [0.5, 1.0]
        assert list(inverse.shift) == [0.0, -shift * size]
        assert list(inverse.magnitude) == [2 * size, size]  # of what the map returns


@pytest.mark.parametrize(("power", "fits"), [(-60, True), (-61, False)])
def test_an_inverse_is_no_larger_than_float32_bears(power, fits):
    assert (Affine.of([2.0**power, -(2.0**power)], 0.0, 1).inverse() is not None) is fits


@pytest.mark.parametrize(("off", "equal"), [(0, True), (8, True), (9, False), (-7, True)])
def test_maps_are_equal_up_to_eight_roundings(off, equal):
    eps = np.finfo(np.float64).eps
    moved = 1 + off * eps
    one = Affine.of([2.0, 1.0], [4.0, 1.0], 1)
    assert one.matches(Affine.of([2.0, moved], [4.0, 1.0], 1)) is equal
    assert one.matches(Affine.of([2.0, 1.0], [4.0, moved], 1)) is equal
    assert not one.matches(Affine.of([2.0, 1.0], [4.0, 1.0], 2))
    assert not one.matches(Affine.of([2.0, 1.0, 1.0], [4.0, 1.0, 1.0], 1))
    snapped = Affine.of([3.0, moved], [0.0, 1.0], 1).snapped()
    assert list(snapped.scale) == [3.0, 1.0 if equal else moved]
    assert list(snapped.shift) == [0.0, 1.0]


def test_what_a_map_needs():
    for scale, shift, scales, shifts in (
        ([1, 2], [0, 0], True, False),
        ([1, 1], [0, -3], False, True),
        ([1, 1], [0, 0], False, False),
        ([0, 1], [1, 0], True, True),
    ):
        affine = Affine.of(scale, shift, 1)
        assert (affine.scales, affine.shifts) == (scales, shifts)
        assert affine.is_identity is not (scales or shifts)
    assert Affine.of([2, 2], [3, 3]).is_uniform
    assert not Affine.of([2, 2], [3, 4]).is_uniform
    assert not Affine.of([2, 5], [3, 3]).is_uniform


def test_a_map_is_its_multiplication_and_then_its_addition():
    affine = Affine(np.array([2.0, -3.0]), np.array([1.0, 5.0]), 1, np.array([4.0, 0.5]))
    x = RNG.normal(size=(3, 2))
    first, second = affine.scale_only, affine.shift_only
    np.testing.assert_allclose(second.apply(first.apply(x)), affine.apply(x))
    assert not first.shifts
    assert not second.scales
    assert list(first.magnitude) == [4.0, 0.5]
    assert list(second.magnitude) == [8.0, 1.5]  # of numbers that are scaled already


def test_the_magnitude_of_a_composition_is_that_of_its_input():
    first = Affine(np.array([2.0, -4.0, 0.0]), np.zeros(3), 1, np.array([1.0, 2.0, 3.0]))
    second = Affine(np.ones(3), np.zeros(3), 1, np.array([6.0, 6.0, 6.0]))
    assert list(second.after(first).magnitude) == [1.0, 2.0, 3.0]
    # What `second` reads is the output of `first`; a scale of 0 tells nothing of its input.
    assert list(second.after(first, known=True).magnitude) == [3.0, 1.5, 6.0]
    unknown = Affine(second.scale, second.shift, 1)
    assert list(unknown.after(first, known=True).magnitude) == [1.0, 2.0, 3.0]


def test_only_maps_of_one_axis_and_size_compose():
    one = Affine.of([1.0, 2.0], 0.0, 1)
    for other in (Affine.of([1.0, 2.0], 0.0, 2), Affine.of([1.0, 2.0, 3.0], 0.0, 1)):
        with pytest.raises(ValueError, match="same axis"):
            one.after(other)


def test_a_uniform_map_moves_with_its_least_magnitude():
    affine = Affine(np.full(2, 3.0), np.full(2, 1.0), 1, np.array([4.0, 0.5]))
    moved = affine.on_axis(2, 3)
    assert (moved.axis, list(moved.scale), list(moved.shift)) == (2, [3.0] * 3, [1.0] * 3)
    assert list(moved.magnitude) == [0.5] * 3
    assert affine.on_axis(1, 2) is affine
    assert affine.on_axis(2, None) is None


def test_parts_keep_their_magnitudes():
    affine = Affine(np.arange(1.0, 4.0), np.zeros(3), 1, np.array([5.0, 6.0, 7.0]))
    first, second = affine.split([1, 2])
    assert (list(first.magnitude), list(second.magnitude)) == ([5.0], [6.0, 7.0])
    assert list(join([second, first]).magnitude) == [6.0, 7.0, 5.0]
    assert first.axis == join([first]).axis == 1
