"""How far features lie from those of the training: the measure, and the file that holds it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from seedling_hf.errors import InputError
from seedling_hf.inference.familiarity import FAMILIARITY, Familiarity, load_familiarity

SIZES = (2, 6)


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    """400 correlated features of two stages, in three classes."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 400)
    means, mixing = 5 * generator.normal(size=(3, 8)), generator.normal(size=(8, 8))
    return means[labels] + generator.normal(size=(400, 8)) @ mixing, labels


def test_of_one_stage_it_is_the_mahalanobis_distance_of_scikit_learn(data):
    from sklearn.covariance import LedoitWolf

    features, labels = data
    standardized = (features - features.mean(0)) / features.std(0)
    means = np.stack([standardized[labels == k].mean(0) for k in range(3)])
    reference = LedoitWolf(assume_centered=True).fit(standardized - means[labels])
    expected = np.min([reference.mahalanobis(standardized - mean) for mean in means], axis=0) / 8
    found = Familiarity.fit(features, labels)(torch.from_numpy(features)).numpy()
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)  # the ridge, and float32


def test_each_stage_counts_the_same(data):
    """With one class the distance is the sum of those of the stages alone, each of which is 1 on average."""
    features, labels = data[0], np.zeros(400, dtype=int)
    both = Familiarity.fit(features, labels, SIZES)(torch.from_numpy(features))
    parts = [
        Familiarity.fit(part, labels)(torch.from_numpy(part)).numpy() for part in (features[:, :2], features[:, 2:])
    ]
    assert both.numpy() == pytest.approx(sum(parts), rel=1e-3, abs=1e-4)
    assert [part.mean() for part in parts] == pytest.approx([1, 1], rel=0.2)  # but for the shrinkage


def test_of_images_like_those_of_the_training_97_in_100_are_familiar_and_none_far_away(data):
    features, labels = data
    familiarity = Familiarity.fit(features[:200], labels[:200], SIZES)
    familiarity.set_threshold(familiarity(torch.from_numpy(features[200:])).numpy())
    share = (familiarity.unfamiliarity(torch.from_numpy(features[200:])) <= 1).float().mean()
    assert share == pytest.approx(0.97, abs=0.005)
    assert (familiarity.unfamiliarity(torch.from_numpy(features + 100)) > 1).all()


def test_fewer_images_than_features_give_finite_distances():
    generator = np.random.default_rng(1)
    features, labels = generator.normal(size=(6, 50)), np.array([0, 0, 0, 1, 1, 1])
    features[:, :3] = 7  # never changes, as where an activation is always zero
    assert Familiarity.fit(features, labels, (20, 30))(torch.from_numpy(features)).isfinite().all()


def test_a_saved_measure_is_loaded_to_the_bit(data, tmp_path):
    features, labels = data
    familiarity = Familiarity.fit(features, labels, SIZES)
    familiarity.set_threshold(np.array([1.0, 2.0]))
    familiarity.save(tmp_path)
    loaded = load_familiarity(source_of(tmp_path), 8, 3)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in familiarity.state_dict().items())


def test_a_folder_without_the_file_has_no_measure(tmp_path):
    assert load_familiarity(source_of(tmp_path), 8, 3) is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda tensors: tensors.pop("whitening"), "whitening"),
        (lambda tensors: tensors.update(center=torch.zeros(9)), "center"),
        (lambda tensors: tensors.update(class_means=torch.zeros(4, 8)), "class_means"),
        (lambda tensors: tensors["center"].fill_(torch.nan), "NaN"),
        (lambda tensors: tensors["threshold"].fill_(torch.inf), "infinite"),
    ],
)
def test_a_measure_of_another_network_or_a_damaged_one_is_refused(data, tmp_path, change, sentence):
    familiarity = Familiarity.fit(*data, SIZES)
    familiarity.set_threshold(np.array([1.0]))
    familiarity.save(tmp_path)
    tensors = load_file(tmp_path / FAMILIARITY)
    change(tensors)
    save_file(tensors, tmp_path / FAMILIARITY)
    with pytest.raises(InputError, match=sentence):
        load_familiarity(source_of(tmp_path), 8, 3)


def source_of(folder):
    """As `Pretrained`, which finds files of a folder."""
    return SimpleNamespace(find=lambda name: folder / name if (folder / name).exists() else None)
