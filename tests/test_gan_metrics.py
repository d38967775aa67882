"""Measures of generated images against values known or computed by hand, and the protocol around them."""

import json
import logging
import math
import os
import pickle
from urllib.error import URLError

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy.linalg import sqrtm
from tiny_models import Answer, write_images, write_models
from torch import nn
from toy_ensemble import WEIGHT, ToyClassifier, toy_dataset

from stylegan2_ada import metrics
from viscoin.inference.batches import choose_images
from viscoin.models.perceptual import find_perceptual
from viscoin.plotting.evaluation import feature_plane_figure
from viscoin.testing import gan, image_features
from viscoin.testing.image_features import ClassifierFeatures


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Nothing is read from or written to the caches of the user, and nothing is downloaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    monkeypatch.delenv("VISCOIN_INCEPTION_WEIGHTS", raising=False)
    return tmp_path


def offline(*_args, **_options):
    raise URLError("no network")


def gaussian(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)) + shift


# --- Frechet distance -----------------------------------------------------------------------------------------------


def moments(values: np.ndarray, batch_size: int = 7) -> metrics.FeatureMoments:
    return metrics.FeatureMoments.of(values, batch_size)


def test_frechet_distance_of_known_gaussians():
    # In one dimension it is (m_a - m_b)^2 + (s_a - s_b)^2; these have means 0, 3 and standard deviations 1, 3.
    a = np.array([[-1.0], [1.0]]) / math.sqrt(2)
    b = 3 + 3 * a
    assert metrics.frechet_distance(moments(a), moments(b)) == pytest.approx(9 + 4)
    assert metrics.frechet_distance(moments(a), moments(a)) == pytest.approx(0, abs=1e-12)


def test_frechet_distance_agrees_with_the_matrix_root():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(150, 6)) + 0.5
    mean_a, mean_b, cov_a, cov_b = a.mean(0), b.mean(0), np.cov(a.T), np.cov(b.T)
    expected = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    assert metrics.frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_agrees_with_torch_fidelity():
    from torch_fidelity import metric_fid

    a, b = gaussian(300, 8, 0), 2 * gaussian(200, 8, 1, shift=0.3)
    parts = [metric_fid.fid_features_to_statistics(torch.from_numpy(part)) for part in (a, b)]
    expected = metric_fid.fid_statistics_to_metric(*parts, verbose=False)[metric_fid.KEY_METRIC_FID]
    assert metrics.frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_fewer_images_than_features_is_finite():
    a, b = gaussian(5, 40, 0), gaussian(5, 40, 1)
    assert 0 < metrics.frechet_distance(moments(a), moments(b)) < 1000
    with pytest.raises(ValueError, match="at least 2 images"):
        metrics.frechet_distance(moments(a[:1]), moments(b))


# --- the other measures of features ---------------------------------------------------------------------------------


def test_kid_of_all_images_is_the_direct_estimate():
    a, b = gaussian(12, 3, 0), gaussian(12, 3, 1, shift=0.5)
    n = len(a)
    within = sum(((x[i] @ x[j]) / 3 + 1) ** 3 for x in (a, b) for i in range(n) for j in range(n) if i != j)
    between = sum(((x @ y) / 3 + 1) ** 3 for x in a for y in b)
    expected = within / (n * (n - 1)) - 2 * between / n**2
    mean, sd = metrics.kernel_distance(a, b, subsets=3, subset_size=n)
    assert mean == pytest.approx(expected, rel=1e-9)
    assert sd == pytest.approx(0, abs=1e-9)


def test_kid_of_one_distribution_is_zero_within_its_error():
    a, b = gaussian(600, 4, 0), gaussian(600, 4, 1)
    mean, sd = metrics.kernel_distance(a, b, subsets=20, subset_size=200)
    assert 0 < sd < 0.2
    assert abs(mean) < 2 * sd
    assert metrics.kernel_distance(a, b + 1, subsets=20, subset_size=200)[0] > 20 * sd
    assert metrics.kernel_distance(a, b, subsets=20, subset_size=200) == (mean, sd)
    assert metrics.kernel_distance(a, b, 1, subsets=20, subset_size=200) != (mean, sd)


def test_precision_and_recall_of_equal_and_of_disjoint_sets():
    a = gaussian(50, 3, 0)
    assert metrics.precision_recall(a, a) == (1.0, 1.0)
    assert metrics.precision_recall(a, a + 100) == (0.0, 0.0)


def test_precision_and_recall_are_not_exchanged():
    # Real images lie at 0..9, samples only around 2: all are inside the real ones, which they cover in part alone.
    real = np.arange(10.0)[:, None]
    generated = np.array([[1.9], [2.0], [2.1], [2.2], [2.3]])
    # the radii of the samples, to their third neighbour: 0.3, 0.2, 0.2, 0.2, 0.3; only the real 2 is inside of one
    assert metrics.precision_recall(real, generated) == (1.0, pytest.approx(0.1))
    assert metrics.precision_recall(real, generated, batch_size=2) == (1.0, pytest.approx(0.1))
    assert metrics.precision_recall(generated, real) == (pytest.approx(0.1), 1.0)


def test_inception_score_counts_classes():
    certain = np.tile(100.0 * np.eye(5), (4, 1))
    assert metrics.inception_score(certain, splits=1) == (pytest.approx(5), 0.0)
    assert metrics.inception_score(certain[:, :1].repeat(5, 1), splits=1)[0] == pytest.approx(
        1
    )  # all probabilities 1/5
    assert metrics.inception_score(np.tile([100.0, 0, 0], (20, 1)), splits=2)[0] == pytest.approx(1)  # one class alone


def test_too_few_images_are_named_with_the_measure():
    a = gaussian(3, 2, 0)
    for measure, text in (
        (
            lambda: metrics.kernel_distance(a, a),
            "KID draws subsets of 1000 images, but there are 3 real and 3 generated",
        ),
        (lambda: metrics.precision_recall(a, a), "precision and recall need more than k = 3 images"),
        (lambda: metrics.inception_score(a), "inception score divides the images into 10 parts, but there are 3"),
    ):
        with pytest.raises(ValueError, match=text):
            measure()


# --- path length ----------------------------------------------------------------------------------------------------


class ToyGenerator(nn.Module):
    """z is w; an image has one row of pixels, `function(w)`."""

    z_dim, c_dim, img_channels, img_resolution = 2, 0, 3, 8

    def __init__(self, function=lambda w: w) -> None:
        super().__init__()
        self.function = function

    def mapping(self, z, c, psi=1):
        return psi * z[:, None] + (0 if c is None else c[:, None])

    def synthesis(self, ws, noise_mode):
        assert noise_mode == "const"
        return self.function(ws)[:, None]


def squares(a, b):
    return (a - b).square().flatten(1).sum(1)


FIRST, LAST = torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 4.0], [0.0, 4.0]])


def lengths(generator, t=None, **options):
    generator = generator.double()
    z = FIRST.double(), LAST.double()
    return metrics.path_lengths(generator, squares, z, t=t, batch_size=2, **options)


def test_path_length_of_a_linear_generator_by_hand():
    # With G(w) = M w and squared differences it is |M (w_1 - w_0)|^2, wherever on the path, however small the step.
    matrix = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    linear = ToyGenerator(lambda w: w @ matrix)
    for t in (None, torch.tensor([0.1, 0.5, 0.9])):
        assert lengths(linear, t) == pytest.approx([4, 4, 9 * 4 + 16], rel=1e-3)
    assert lengths(linear, truncation_psi=0.5) == pytest.approx([1, 1, 13], rel=1e-3)


def test_path_length_is_taken_at_t():
    # d/dw w^2 = 2 w: at t = 0 the first path begins where nothing changes.
    curved = ToyGenerator(lambda w: w**2)
    assert lengths(curved, epsilon=1e-3) == pytest.approx([0, 8**2, 18**2], rel=2e-3, abs=1e-5)
    # w_t = (0.5, 0), (1, 3), (1.5, 2); differences (1, 0), (0, 2), (-3, 4)
    halfway = lengths(curved, torch.full((3,), 0.5), epsilon=1e-3)
    assert halfway == pytest.approx([1, 12**2, 9**2 + 16**2], rel=4e-3)


def test_path_length_of_large_images_is_that_of_averaged_ones():
    generator = ToyGenerator(lambda w: w[..., :1, None].expand(-1, 1, 4, 4))
    generator.synthesis = lambda ws, noise_mode: ws[:, :1, :1, None].expand(-1, 1, 4, 4)
    assert lengths(generator, largest=None) == pytest.approx([16, 0, 16 * 9], rel=1e-3)
    assert lengths(generator, largest=2) == pytest.approx([4, 0, 4 * 9], rel=1e-3)


def test_trimmed_mean_leaves_out_the_extremes():
    assert metrics.trimmed_mean(np.array([*range(99), 1e6]), 0.02) == pytest.approx(np.mean(range(1, 99)))
    assert metrics.trimmed_mean(np.array([1.0, 3.0])) == 2


# --- a generator against a dataset ----------------------------------------------------------------------------------


class QuadrantGenerator(nn.Module):
    """Images 8 px wide whose four quadrants have the brightness tanh(z) in [-1, 1]."""

    z_dim, c_dim, img_channels, img_resolution = 4, 0, 3, 8

    def __init__(self, c_dim: int = 0) -> None:
        super().__init__()
        self.c_dim, self.seen = c_dim, []

    def mapping(self, z, c, psi=1):
        self.seen.append(c)
        return psi * z[:, None]

    def synthesis(self, ws, noise_mode="random"):
        return ws.tanh().view(-1, 1, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)

    def forward(self, z, c, truncation_psi=1):
        return self.synthesis(self.mapping(z, c, truncation_psi))


def quadrant_dataset(n: int = 60, share: float = 0.5, seed: int = 0):
    random = np.random.default_rng(seed)
    return toy_dataset(random.random((n, 4)), list((random.random(n) >= share).astype(int)))


def network() -> ClassifierFeatures:
    return ClassifierFeatures(ToyClassifier(torch.tensor(WEIGHT)))


def measure(n: int = 40, measures=None, dataset=None, generator=None, **options) -> gan.GanMeasures:
    return gan.measure_gan(
        generator or QuadrantGenerator(),
        dataset or quadrant_dataset(),
        network(),
        n,
        measures,
        batch_size=16,
        **options,
    )


def test_gan_distance_is_that_of_samples_rounded_to_8_bit():
    result = gan.test_gan(QuadrantGenerator(), network().classifier, quadrant_dataset(), n=30, seed=3, batch_size=8)
    assert (result.n, result.n_real) == (30, 30)
    z = torch.randn(30, 4, generator=torch.Generator().manual_seed(3)).tanh().numpy()
    real = quadrant_dataset().pixels[choose_images(60, 30, 3)][:, ::4, ::4, 0].reshape(30, 4) / 255
    # the mean of a channel that is bright in one of four quadrants
    fake = np.round((z + 1) * 127.5) / 255
    expected = metrics.frechet_distance(moments(real / 4), moments(fake / 4))
    assert result.fid == pytest.approx(expected, rel=1e-5)
    exact = metrics.frechet_distance(moments(real / 4), moments((z + 1) / 2 / 4))
    assert result.fid != pytest.approx(exact, rel=1e-5)


def test_names_and_protocol_of_all_measures():
    result = measure(kid_subset=20, perceptual=(squares, "squares"))
    assert list(result.values) == [
        "fid40_classifier", "kid40_classifier", "kid_sd40_classifier", "precision40_classifier", "recall40_classifier",
        "is40_classifier", "is_sd40_classifier", "ppl40_w_end_squares", "ppl40_w_full_squares",
    ]  # fmt: skip
    assert all(math.isfinite(value) for value in result.values.values())
    assert result.values["ppl40_w_end_squares"] != pytest.approx(result.values["ppl40_w_full_squares"], rel=0.01)
    protocol = result.to_dict()["protocol"]
    named = {"split": "test", "resolution": 8, "real_images": 40, "samples": 40, "resize": "none", "rounding": "8 bit"}
    assert named.items() <= protocol.items()
    assert protocol["kid"] == "100 subsets of 20" and "epsilon 0.0001, distance squares" in protocol["ppl"]
    json.dumps(result.to_dict())


def test_the_distance_alone_is_the_same_number():
    whole = measure(measures=["fid"])
    alone = gan.test_gan(QuadrantGenerator(), network().classifier, quadrant_dataset(), 40, batch_size=16)
    assert whole.values == {"fid40_classifier": pytest.approx(alone.fid, rel=1e-9)}


def test_measures_depend_on_the_seed_alone():
    options = {"kid_subset": 20, "perceptual": (squares, "squares")}
    first, again, other = (measure(seed=seed, **options).values for seed in (0, 0, 1))
    assert first == again
    assert all(first[key] != other[key] for key in first)


def test_truncation_is_named_and_narrows_the_samples():
    whole, narrow = (measure(measures=["ppl"], perceptual=(squares, "s"), truncation=psi).values for psi in (1, 0.5))
    assert list(narrow) == ["ppl40_w_end_s_psi0.5"]
    assert narrow["ppl40_w_end_s_psi0.5"] < whole["ppl40_w_end_s"]
    alike = measure(measures=["is"], truncation=0).values
    assert alike["is40_classifier_psi0"] == pytest.approx(1)
    assert measure(measures=["is"]).values["is40_classifier"] > 1.1


def test_labels_of_samples_follow_those_of_the_data():
    generator = QuadrantGenerator(c_dim=2)
    measure(400, ["fid"], quadrant_dataset(300, share=0.9), generator)
    labels = torch.cat(generator.seen)
    assert labels.shape == (400, 2) and (labels.sum(1) == 1).all()
    assert 0.84 < labels[:, 0].mean() < 0.96


def test_more_samples_than_images():
    result = measure(100, ["fid", "pr"])
    assert result.protocol["real_images"] == 60 and result.protocol["samples"] == 100


def test_measures_that_cannot_be_had_are_left_out_or_refused(caplog):
    caplog.set_level(logging.INFO, "viscoin")
    result = measure(5)
    assert set(result.left_out) == {"kid", "is", "ppl", "ppl-full"}
    assert "KID draws subsets of 1000 images, there are 5 real and 5 generated ones" in caplog.text
    assert result.to_dict()["left_out"] == result.left_out
    for name, n, text in (
        ("kid", 40, "KID draws subsets of 1000 images, there are 40 real"),
        ("pr", 3, "precision and recall need more than 3 images of each kind, there are 3 real"),
        ("is", 9, "IS needs at least 10 samples, there are 9"),
        ("fid", 1, "FID needs at least 2"),
        ("ppl", 40, "LPIPS"),
    ):
        with pytest.raises(ValueError, match=f"measures {name}: .*{text}"):
            measure(n, [name])
    with pytest.raises(
        ValueError, match="measures fvd: there is no such measure; choose some of fid, kid, pr, is, ppl, ppl-full"
    ):
        measure(measures=["fid", "fvd"])


def test_no_inception_score_without_classes():
    blind = ClassifierFeatures(ToyClassifier(torch.tensor(WEIGHT)), has_classes=False)
    with pytest.raises(ValueError, match="IS needs class probabilities, which classifier does not give"):
        gan.measure_gan(QuadrantGenerator(), quadrant_dataset(), blind, 20, ["is"])


def test_without_torch_fidelity_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch_fidelity.metric_prc", None)
    with pytest.raises(ValueError, match=r"pip install viscoin\[metrics\]"):
        metrics.precision_recall(gaussian(9, 2, 0), gaussian(9, 2, 1))


@pytest.mark.parametrize(
    ("change", "texts"),
    [
        ({"img_resolution": 16}, ("16 px", "8 px", "'toy'")),
        ({"img_channels": 1}, ("1 channels",)),
        ({"c_dim": 5}, ("5 classes", "has 2")),
    ],
)
def test_generators_that_do_not_fit_are_refused(change, texts):
    generator = QuadrantGenerator()
    vars(generator).update(change)
    for call in (
        lambda: measure(generator=generator),
        lambda: gan.test_gan(generator, network().classifier, quadrant_dataset(), 10),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert all(text in str(error.value) for text in texts)


# --- features of real images are kept -------------------------------------------------------------------------------


def kept(dataset, features=None, n: int = 20) -> tuple[np.ndarray, int]:
    """Features of the first images, and how many files the cache then holds."""
    features = features or network()
    with torch.no_grad():
        found = image_features.real_features(features, dataset, np.arange(n), 8, "cpu")
    return found, len(list(image_features.cache_folder().glob("features/*.npy")))


def test_features_are_kept_by_content(caplog):
    caplog.set_level(logging.INFO, "viscoin")
    found, files = kept(quadrant_dataset())
    assert found.shape == (20, 4) and found.dtype == np.float32 and files == 1
    assert "classifier features of 20 real images: kept in" in caplog.text

    def unused(self, pixels):
        raise AssertionError("the features are known")

    renamed = quadrant_dataset()
    renamed.name = "another name for the same images"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassifierFeatures, "forward", unused)
        assert (kept(renamed)[0] == found).all()
    assert "classifier features of 20 real images: from" in caplog.text


def test_one_other_pixel_is_another_reference():
    changed = quadrant_dataset()
    changed.pixels[7, 3, 3, 1] ^= 1
    before, _ = kept(quadrant_dataset())
    after, files = kept(changed)
    assert files == 2 and (before != after).any(1).sum() == 1
    unseen = quadrant_dataset()
    unseen.pixels[30, 3, 3, 1] ^= 1  # not among the first 20
    assert kept(unseen)[1] == 2
    assert kept(quadrant_dataset(), n=21)[1] == 3


def test_one_other_weight_or_resize_rule_is_another_reference():
    assert kept(quadrant_dataset())[1] == 1
    changed = network()
    with torch.no_grad():
        changed.classifier.weight[1, 2] += 1e-6
    assert kept(quadrant_dataset(), changed)[1] == 2
    resized = network()
    resized.resize = "bilinear to 16 px"
    assert kept(quadrant_dataset(), resized)[1] == 3
    shifted = network()
    shifted.classifier.register_buffer("mean", torch.zeros(1), persistent=False)
    assert kept(quadrant_dataset(), shifted)[1] == 4


# --- which features -------------------------------------------------------------------------------------------------


def test_auto_takes_the_classifier_unless_inception_is_on_disk():
    f = network().classifier
    assert image_features.find_features("auto", f).name == "classifier"
    with pytest.raises(ValueError, match=r"no classifier of this dataset .*`classifier`.*inception or timm"):
        image_features.find_features("auto")


def test_unknown_features_are_refused():
    for kind, text in (
        ("vgg", "features vgg: unknown; choose auto, inception, classifier or timm:NAME"),
        ("timm:resnet5", "no backbone 'resnet5'.*did you mean"),
        ("timm:viscoin_resnet10", "no weights of this backbone are published"),
    ):
        with pytest.raises(ValueError, match=text):
            image_features.find_features(kind, network().classifier)


def test_inception_offline_says_what_how_large_and_what_else(caplog, tmp_path):
    caplog.set_level(logging.INFO, "stylegan2_ada")
    with pytest.raises(ValueError) as error:
        image_features.find_features("inception")
    text = str(error.value)
    assert "96 MB" in text and "no network" in text and "features of a classifier" in text and "\n" not in text
    assert f"downloading Inception weights (96 MB) to {tmp_path / 'hub' / 'checkpoints'}" in caplog.text
    with pytest.raises(ValueError, match=r"no file .*missing.pth"):
        image_features.find_features("inception", weights=tmp_path / "missing.pth")


def test_weights_of_a_backbone_offline(monkeypatch):
    def create(name, pretrained=False, **options):
        if pretrained:
            raise RuntimeError("no network")
        return original(name, pretrained=False, **options)

    original = image_features.timm.create_model
    monkeypatch.setattr("timm.create_model", create)
    with pytest.raises(ValueError, match=r"timm:resnet10t.c3_in1k: its weights \(22 MB\) could not be .*no network"):
        image_features.find_features("timm:resnet10t.c3_in1k")


def test_features_of_a_backbone_are_those_of_resized_images():
    features = image_features.timm_features("resnet10t.c3_in1k", pretrained=False).eval()
    assert features.resize == "bilinear with antialias to 176 px, from 8 bit" and features.has_classes
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        found, logits = features(pixels)
        large = nn.functional.interpolate(pixels.float() / 127.5 - 1, (176, 176), mode="bilinear", antialias=True)
        assert found.numpy() == pytest.approx(features.classifier.pooled(large).numpy(), rel=1e-4, abs=1e-5)
    assert logits.shape == (2, 1000)


class Attack:
    def __reduce__(self):
        return os.mkdir, ("attacked",)


def test_files_that_are_no_inception_weights_are_refused_and_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pth").write_text("hello")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with (tmp_path / "attack.pth").open("wb") as file:
        pickle.dump(Attack(), file)
    for name in ("text.pth", "other.pth", "attack.pth"):
        with pytest.raises(ValueError, match=f"{name} does not hold the Inception weights"):
            image_features.find_features("inception", weights=tmp_path / name)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.slow
def test_inception_from_the_hub_folder(tmp_path, monkeypatch):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path / "hub" / "checkpoints" / metrics.INCEPTION_FILE
    path.parent.mkdir(parents=True)
    torch.save({}, path)
    with monkeypatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        random = metrics.InceptionFeatures(path)
    torch.save(random.model.state_dict(), path)
    found = image_features.find_features("auto", network().classifier)
    assert found.name == "inception" and found.has_classes
    features, logits = found(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    assert features.shape == (2, 2048) and logits.shape == (2, 1008)
    assert image_features.network_digest(found) == image_features.network_digest(random)


def test_perceptual_distances(tmp_path):
    f = network().classifier
    distance, name = find_perceptual("auto", f)
    assert name == "classifier"
    images = torch.rand(2, 3, 8, 8)
    assert distance(images, images).tolist() == [0, 0]
    assert find_perceptual("auto", None) is None
    for kind, text in (
        ("lpips", "528 MB.*choose classifier"),
        ("classifier", "no classifier"),
        ("l2", "perceptual l2"),
    ):
        with pytest.raises(ValueError, match=text):
            find_perceptual(kind, None)


# --- figure and command ---------------------------------------------------------------------------------------------


def test_plane_of_the_main_axes():
    real = gaussian(400, 3, 0) * [1, 5, 2] + 7
    comparison = gan.Comparison(real, real[:10] + np.array([0, 1, 0]), np.zeros((10, 2)), 0, 10)
    shown, generated = comparison.plane()
    assert shown.std(0) == pytest.approx([5, 2], rel=0.2)
    assert abs(generated - shown[:10])[:, 0] == pytest.approx([1] * 10, abs=0.05)
    figure = feature_plane_figure(shown, generated, "classifier", {"fid40_classifier": 1.5})
    assert isinstance(figure, Figure)
    assert {"fid40_classifier", "1.5"} <= {text.get_text() for text in figure.axes[2].texts}


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("viscoin.models.files.ASSETS", tmp_path / "assets")
    return write_models(tmp_path / "models")


def test_command(models, tmp_path):
    options = ["--checkpoints", models["gan"], "--classifier", models["classifier"], "--out", "out"]
    options += ["--samples", 30, "--kid-subset", 20, "--truncation", 0.7]
    answer = Answer("test", "gan", *options).went_well()
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert result["fid30_classifier_psi0.7"] > 0 and 0 <= result["precision30_classifier_psi0.7"] <= 1
    assert result["ppl30_w_end_classifier_psi0.7"] > 0 and "left_out" not in result
    assert result["protocol"]["real_images"] == 30 and result["protocol"]["truncation"] == 0.7
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["features.png", "samples.png"]
    assert "kept in" in answer.err
    again = Answer("test", "gan", *options, "--metrics", "fid, pr").went_well()
    assert "classifier features of 30 real images: from" in again.err
    chosen = json.loads((tmp_path / "out" / "results.json").read_text())
    assert chosen["fid30_classifier_psi0.7"] == result["fid30_classifier_psi0.7"] and "kid_sd30" not in str(chosen)


def test_command_on_images_without_classes(models, tmp_path):
    for folder in ("flat", "flat/more"):
        write_images(tmp_path, {folder: 12}, size=32)
    options = ["--checkpoints", models["gan"], "--dataset", "flat", "--out", "out"]
    Answer("test", "gan", *options, "--classifier", models["classifier"], "--metrics", "fid").went_well()
    Answer("test", "gan", *options).refused("--features auto", "--classifier")


def test_mistakes_on_the_command_line(models, tmp_path):
    options = ["test", "gan", "--checkpoints", models["gan"], "--classifier", models["classifier"], "--samples", 20]
    Answer(*options, "--metrics", "kid").refused("--metrics kid", "1000", "20 real")
    Answer(*options, "--metrics", "fid,fvd").refused("--metrics fvd", "fid, kid, pr")
    Answer(*options, "--features", "resnet50").refused("--features resnet50", "timm:NAME")
    Answer(*options, "--features", "inception").refused("96 MB", "features of a classifier")
    Answer(*options, "--inception-weights", "none.pth").refused("none.pth")
    Answer(*options, "--perceptual", "lpips").refused("528 MB")
    assert not list(tmp_path.glob("runs/*"))
