"""Protects BatchNormalization followed by Dense: it trains on real data, folds forward, exports."""

import keras
import numpy as np
import pytest
import renormlite as rl
from renormlite.models import RECIPES, batchnorm_dense
from renormlite.models.recipe import Trained


@pytest.fixture(scope="module")
def trained() -> Trained:
    """The network, trained by the recipe."""
    return batchnorm_dense.train()


def test_the_recipe_is_listed() -> None:
    assert "batchnorm_dense" in RECIPES


def test_test_accuracy_is_at_least_97_percent(trained: Trained) -> None:
    assert trained.accuracy >= 0.97


def test_every_norm_folds_forward_into_the_next_dense_layer(trained: Trained) -> None:
    folded = rl.fold(trained.model)
    assert [r.outcome for r in folded.report.records] == ["folded"] * 3
    assert [len(r.into) for r in folded.report.records] == [1, 1, 1]
    assert folded.proof.passed
    kinds = {type(layer) for layer in folded.model.layers}
    assert not kinds & {keras.layers.BatchNormalization, rl.ChannelAffine}
    # The corners of the scans are 0 in every image, so their variance is 0.
    first = next(x for x in trained.model.layers if isinstance(x, keras.layers.BatchNormalization))
    assert np.asarray(first.moving_variance).min() < 1e-3


def test_the_artifacts_have_the_operators_of_the_network_without_norms(
    trained: Trained, tmp_path
) -> None:
    made = rl.export_model(trained.model, tmp_path / "net", inputs=trained.test.x[:64])
    twin = rl.export_model(batchnorm_dense.build(None), tmp_path / "twin")
    assert [a.ops for a in made.artifacts] == [a.ops for a in twin.artifacts]
    assert len(made.artifacts) == 2
    report = rl.check_parity(tmp_path / "net", targets=("litert", "onnxruntime"))
    assert report.passed


def test_the_network_converts_to_batch_renormalization(trained: Trained) -> None:
    renorm = rl.to_renorm(trained.model)
    few = trained.test.x[:50]
    np.testing.assert_array_equal(
        renorm.predict(few, verbose=0), trained.model.predict(few, verbose=0)
    )
