"""Protects the form BatchNormalization -> Dense: it trains on real data, folds forward, exports."""

import keras
import numpy as np
import pytest
import renormlite as rl
from renormlite.models import RECIPES, batchnorm_dense
from renormlite.models.recipe import Trained


@pytest.fixture(scope="module")
def trained() -> Trained:
    """The network as the recipe trains it."""
    return batchnorm_dense.train()


def test_the_recipe_is_listed() -> None:
    assert "batchnorm_dense" in RECIPES


def test_test_accuracy_is_at_least_97_percent(trained: Trained) -> None:
    assert trained.accuracy >= 0.97


def test_every_norm_folds_forward_into_the_dense_layer_behind_it(trained: Trained) -> None:
    folded = rl.fold(trained.model)
    assert [r.outcome for r in folded.report.records] == ["folded"] * 3
    assert [len(r.into) for r in folded.report.records] == [1, 1, 1]
    assert folded.proof.passed
    kinds = {type(layer) for layer in folded.model.layers}
    assert not kinds & {keras.layers.BatchNormalization, rl.ChannelAffine}
    # Corners of the scans are 0 in every image: their variance is 0, their norm an exact one still.
    first = next(x for x in trained.model.layers if isinstance(x, keras.layers.BatchNormalization))
    assert np.asarray(first.moving_variance).min() < 1e-3


def test_the_artifacts_have_the_operators_of_the_twin_without_norms(
    trained: Trained, tmp_path
) -> None:
    made = rl.export_model(trained.model, tmp_path / "net", inputs=trained.test.x[:64])
    twin = rl.export_model(batchnorm_dense.build(None), tmp_path / "twin")
    assert [a.ops for a in made.artifacts] == [a.ops for a in twin.artifacts]
    assert len(made.artifacts) == 2
    report = rl.check_parity(tmp_path / "net", targets=("litert", "onnxruntime"))
    assert report.passed


def test_it_takes_batch_renormalization_as_well(trained: Trained) -> None:
    renorm = rl.to_renorm(trained.model)
    few = trained.test.x[:50]
    np.testing.assert_array_equal(
        renorm.predict(few, verbose=0), trained.model.predict(few, verbose=0)
    )
