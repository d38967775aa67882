"""Projection: the search against known answers, latents as files, the command and its mistakes."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import Answer, write_models

from stylegan2_ada.networks import Generator
from stylegan2_ada.projection import (
    noise_correlation,
    project,
    rate_factor,
    reduced,
    render,
    style_statistics,
)
from viscoin.analysis import projection as library
from viscoin.config import DatasetConfig
from viscoin.errors import Refused
from viscoin.inference.loading import Subject, read_pictures
from viscoin.models import perceptual
from viscoin.models.classifier import Classifier
from viscoin.models.files import load_model
from viscoin.plotting.projection import progress_figure

NOISES = {"b4.conv1": 4, "b8.conv0": 8, "b8.conv1": 8, "b16.conv0": 16, "b16.conv1": 16}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("viscoin.models.files.ASSETS", tmp_path / "assets")


def squared(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (images - targets).square().mean((1, 2, 3))


def tiny_generator(c_dim: int = 0, noise: float = 0.2, **synthesis) -> Generator:
    """16 px, by default with noise that shows."""
    torch.manual_seed(1)
    options = {"channel_base": 128, "channel_max": 8} | synthesis
    generator = Generator(8, c_dim, 8, 16, 3, {"num_layers": 2, "lr_multiplier": 1}, options).eval()
    with torch.no_grad():
        for name, strength in generator.named_parameters():
            if name.endswith("noise_strength"):
                strength.fill_(noise)
    return generator


def own_images(generator: Generator, n: int = 2, seed: int = 7) -> torch.Tensor:
    z = torch.randn(n, generator.z_dim, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return generator(z, noise_mode="const")


@pytest.fixture(scope="module")
def generator():
    return tiny_generator()


@pytest.fixture(scope="module")
def targets(generator):
    return own_images(generator)


# --- parts with known answers ------------------------------------------------------------------------------------


def test_noise_correlation_of_known_patterns():
    flat8, flat16 = torch.ones(1, 1, 8, 8), torch.ones(1, 1, 16, 16)
    stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(1, 1, 8, 8)
    assert noise_correlation({"a": flat8}).tolist() == [2]  # 1^2 in both directions
    assert noise_correlation({"a": flat16}).tolist() == [2 + 2 * 4**2]  # at half size every value is 2
    assert noise_correlation({"a": stripes}).tolist() == [2]  # -1 across, 1 along
    assert noise_correlation({"a": flat8, "b": stripes}).tolist() == [4]
    edge = torch.zeros(1, 1, 8, 8)
    edge[..., 0, 0] = edge[..., 0, 7] = 8  # neighbours only across the border
    assert noise_correlation({"a": edge}).tolist() == [1]
    white = torch.randn(3, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    assert noise_correlation({"a": white}).shape == (3,) and noise_correlation({"a": white}).max() < 0.15


def test_rate_rises_over_a_twentieth_and_falls_over_the_last_quarter():
    assert rate_factor(0, 1000) == pytest.approx(1 / 50)
    assert rate_factor(24, 1000) == pytest.approx(0.5)
    assert [rate_factor(step, 1000) for step in (49, 400, 750)] == pytest.approx([1, 1, 1])
    assert rate_factor(875, 1000) == pytest.approx(0.5)
    assert 0 < rate_factor(999, 1000) < 1e-4
    assert rate_factor(0, 1) == 1


def test_style_statistics_are_those_of_the_mapping():
    generator = tiny_generator(c_dim=3)
    c = torch.eye(3)[[2, 0, 2]]
    w_avg, w_std = style_statistics(generator, c, torch.Generator().manual_seed(0), samples=50)
    z = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    w = generator.mapping(z, c[:1].expand(50, -1))[:, 0].detach()
    assert w_avg.shape == (3, 8) and w_std.shape == (3,)
    torch.testing.assert_close(w_avg[0], w.mean(0))
    torch.testing.assert_close(w_std[0], (w - w.mean(0)).norm(dim=1).square().mean().sqrt())
    assert torch.equal(w_avg[0], w_avg[2]) and not torch.allclose(w_avg[0], w_avg[1])


def test_reduced_averages_large_images_alone():
    large = torch.arange(512.0).expand(1, 3, 512, 512)
    assert reduced(large).shape == (1, 3, 256, 256)
    assert reduced(large)[0, 0, 0, :3].tolist() == [0.5, 2.5, 4.5]
    small = torch.zeros(1, 3, 64, 64)
    assert reduced(small) is small


# --- the search --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["w", "w+"])
def test_images_of_the_generator_come_back(space):
    generator = tiny_generator(noise=0)
    targets = own_images(generator)
    found = project(generator, targets, squared, space=space, steps=70)
    assert (found.distance < found.snapshot_distances[:, 0] / 15).all(), found.snapshot_distances
    torch.testing.assert_close(found.distance, squared(found.images, targets))
    one_style = torch.equal(found.ws, found.ws[:, :1].expand_as(found.ws))
    assert one_style == (space == "w")
    assert found.ws.shape == (2, generator.num_ws, 8) and not found.ws.requires_grad


def test_result_is_complete(generator, targets):
    found = project(generator, targets, squared, steps=10, snapshots=4)
    assert found.distances.shape == (2, 10)
    assert found.snapshot_steps == (0, 1, 4, 10)
    assert found.snapshots.shape == (2, 4, 3, 16, 16) and found.snapshot_distances.shape == (2, 4)
    assert torch.equal(found.snapshots[:, -1], found.images)
    at_mean = found.w_avg[:, None].expand(-1, generator.num_ws, -1)
    assert torch.allclose(generator.synthesis(at_mean, noise_mode="none"), found.snapshots[:, 0], atol=3)
    assert {name: noise.shape for name, noise in found.noises.items()} == {
        f"{name}.noise_const": (2, 1, side, side) for name, side in NOISES.items()
    }


def test_noise_maps_are_optimised_and_stay_white(generator, targets):
    first = project(generator, targets, squared, steps=1, learning_rate=1e-12)
    found = project(generator, targets, squared, steps=20)
    for name, noise in found.noises.items():
        torch.testing.assert_close(noise.mean((1, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
        torch.testing.assert_close(noise.square().mean((1, 2, 3)), torch.ones(2))
        assert not torch.allclose(noise, first.noises[name], atol=0.01)
    # a picture hides in the noise maps as soon as nothing forbids it
    free = project(generator, targets, squared, steps=20, noise_weight=0)
    assert (noise_correlation(found.noises) < noise_correlation(free.noises) / 4).all()


def test_noise_on_the_style_fades_out_after_three_quarters(generator, targets):
    found = project(generator, targets, squared, steps=8, learning_rate=1e-12)
    difference = (found.distances - found.snapshot_distances[:, :1]).abs()
    assert (difference[:, :5] > 1e-5).all()
    assert (difference[:, 6:] < 1e-5).all()


def test_pixel_term_counts(generator, targets):
    def blind(images, targets):
        return 0 * images.mean((1, 2, 3))

    found = project(generator, targets, blind, steps=40, pixel_weight=1, noise_weight=0)
    start, end = squared(found.snapshots[:, 0], targets), squared(found.images, targets)
    assert (end < start / 3).all() and (found.distances == 0).all()


def test_generator_stays_as_it_is_even_after_an_error(targets):
    generator = tiny_generator()
    generator.requires_grad_(True).mapping.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    flags = [parameter.requires_grad for parameter in generator.parameters()]
    project(generator, targets, squared, steps=2)

    def stop(images, targets):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        project(generator, targets, stop, steps=2)
    assert [parameter.requires_grad for parameter in generator.parameters()] == flags
    assert all(parameter.grad is None for parameter in generator.parameters())
    after = generator.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_seed_decides_and_the_global_one_is_left_alone(generator, targets):
    state = torch.get_rng_state()
    first, again, other = (project(generator, targets, squared, steps=3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.ws, again.ws) and torch.equal(first.images, again.images)
    assert not torch.allclose(first.ws, other.ws)


def test_row_does_not_depend_on_its_batch(generator, targets):
    both = project(generator, targets, squared, steps=5)
    alone = project(generator, targets[1:], squared, steps=5)
    torch.testing.assert_close(both.ws[1:], alone.ws, atol=1e-4, rtol=1e-4)


def test_search_works_where_gradients_are_off(generator, targets):
    wanted = project(generator, targets, squared, steps=3)
    with torch.inference_mode():
        found = project(generator, targets * 1, squared, steps=3)
    assert torch.equal(found.ws, wanted.ws)


def test_generator_without_noise_inputs_and_one_in_half_precision():
    generator = tiny_generator(use_noise=False, num_fp16_res=2, conv_clamp=256)
    found = project(generator, own_images(generator), squared, steps=2)
    assert found.noises == {} and torch.equal(render(generator, found.ws, {}), found.images)
    assert generator.synthesis.b16.use_fp16 is True


def test_conditional_search_starts_at_the_mean_style_of_the_class(targets):
    generator = tiny_generator(c_dim=3)
    found = project(generator, targets, squared, steps=1, c=torch.eye(3)[[0, 2]])
    assert not torch.allclose(found.w_avg[0], found.w_avg[1])
    single = project(generator, targets[1:], squared, steps=1, c=torch.eye(3)[[2]])
    assert torch.allclose(found.w_avg[1], single.w_avg[0])


def test_render_gives_the_same_bits_alone(generator, targets):
    found = project(generator, targets, squared, steps=2)
    row = {name: noise[1:] for name, noise in found.noises.items()}
    assert torch.equal(render(generator, found.ws[1:], row), found.images[1:])
    with pytest.raises(ValueError, match=r"do not fit the generator, first b16\.conv0"):
        render(generator, found.ws, {name: noise for name, noise in found.noises.items() if "b16.conv0" not in name})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": "z"}, "space is 'z'; choose w or w\\+"),
        ({"steps": 0}, "steps is 0; at least 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; a number above 0"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"c": torch.zeros(2, 3)}, r"conditions c are \(2, 3\); the generator takes none"),
        ({"target": torch.zeros(2, 3, 8, 8)}, r"\(2, 3, 8, 8\); the generator needs \(B, 3, 16, 16\)"),
    ],
)
def test_unusable_arguments_are_named(generator, targets, options, message):
    with pytest.raises(ValueError, match=message):
        project(**{"generator": generator, "target": targets, "distance": squared, **options})


def test_missing_condition_is_named(targets):
    with pytest.raises(ValueError, match=r"c are missing; the generator takes \(B, 3\)"):
        project(tiny_generator(c_dim=3), targets, squared)


# --- distances, measures, latents --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return Classifier("viscoin_resnet10", 4, 32).eval()


def test_classifier_distance_resizes_and_reads_targets_once(classifier, monkeypatch):
    distance = library.classifier_distance(classifier)
    assert distance.name == "classifier" and distance.pixel_weight > 0
    images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seen = []
    features = classifier.features
    monkeypatch.setattr(classifier, "features", lambda x: seen.append(tuple(x.shape)) or features(x))
    assert distance.function(images, images).tolist() == [0, 0]
    assert (distance.function(images.flip(2), images) > 0.01).all()
    assert seen == [(2, 3, 32, 32)] * 3
    other = images.clone()
    assert distance.function(other, other).tolist() == [0, 0]


def test_distance_is_lpips_where_it_can_be_had(classifier, monkeypatch, caplog):
    def gone(device):
        raise Refused(None, None, "could not download the VGG-16 weights of LPIPS: no route", "put them there")

    def needless():
        raise RuntimeError("no classifier is needed")

    sizes = []
    lpips = lambda a, b: sizes.append(a.shape[-1]) or squared(a, b)  # noqa: E731
    monkeypatch.setattr(perceptual, "load_lpips", lambda device: lpips)
    for kind in ("auto", "lpips"):
        chosen = library.choose_distance(kind, needless, "cpu")
        assert (chosen.name, chosen.title, chosen.pixel_weight) == ("lpips", "LPIPS", 0)
    large = torch.zeros(1, 3, 512, 512)
    assert chosen.function(large, large).tolist() == [0] and sizes == [256]
    monkeypatch.setattr(perceptual, "load_lpips", gone)
    with caplog.at_level("INFO"):
        assert library.choose_distance("auto", lambda: classifier, "cpu").name == "classifier"
    assert "no route" in caplog.text and "feature maps of the classifier" in caplog.text
    with pytest.raises(ValueError, match=r"distance lpips: .*no route.*or choose classifier"):
        library.choose_distance("lpips", needless, "cpu")
    with pytest.raises(ValueError, match=r"distance vgg: unknown .*choose auto, lpips, classifier"):
        library.choose_distance("vgg", needless, "cpu")


@pytest.fixture(scope="module")
def projected(generator, targets):
    distance = library.NamedDistance(squared, "lpips", "LPIPS", 0.0)
    search = library.Search(steps=12, seed=3)
    return library.project_images(generator, targets, ["a", "b"], distance, search, generator_name="g.safetensors")


def test_measures_of_known_images(generator, targets, projected):
    found = project(generator, targets, squared, steps=12, seed=3)
    shifted = found.images.clamp(-1, 1) + 0.02
    scores = library.measure(found, shifted[1], 1)
    assert scores["l1"] == pytest.approx(0.02, rel=1e-3)
    assert scores["psnr"] == pytest.approx(40, abs=0.01)  # 20 log10(2 / 0.02)
    assert scores["distance"] == float(found.distance[1])
    assert scores["distance_at_start"] == float(found.snapshot_distances[1, 0])
    offset = (found.ws[1, 0] - found.w_avg[1]).norm() / found.w_std[1]
    assert scores["style_offset"] == pytest.approx(float(offset), rel=1e-4)
    assert library.measure(found, found.images[0].clamp(-1, 1), 0)["psnr"] < 107


def test_batches_are_joined_in_order(generator, targets, projected):
    distance = library.NamedDistance(squared, "lpips", "LPIPS", 0.0)
    single = library.project_images(
        generator, targets, ["a", "b"], distance, library.Search(steps=12, seed=3), batch_size=1
    )
    assert [one.name for one in single] == ["a", "b"]
    for one, other in zip(projected, single, strict=True):
        assert np.abs(one.image.astype(int) - other.image.astype(int)).max() <= 1
        assert (one.target == other.target).all() and one.distances.shape == (12,)


def test_saved_latent_makes_exactly_the_image_again(generator, targets, projected, tmp_path):
    paths = library.save_projections(tmp_path / "new", projected)
    assert [path.name for path in paths] == [
        "a-pair.png", "a-latent.safetensors", "b-pair.png", "b-latent.safetensors", "results.json",
    ]  # fmt: skip
    latent = library.load_latent(tmp_path / "new" / "b-latent.safetensors")
    again = library.to_pixels(latent.image(generator)[None])[0]
    pair = np.asarray(Image.open(tmp_path / "new" / "b-pair.png"))
    assert (again == projected[1].image).all()
    assert (pair[:, :16] == projected[1].target).all() and (pair[:, -16:] == again).all()
    assert latent.metadata["image"] == "b" and latent.metadata["steps"] == 12 and latent.metadata["seed"] == 3
    assert latent.metadata["scores"] == projected[1].scores and latent.metadata["distance"] == "lpips"


def test_results_hold_every_score_and_the_mean(projected, tmp_path):
    library.save_projections(tmp_path, projected)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["distance"] == "lpips" and results["generator"] == "g.safetensors" and results["space"] == "w"
    assert [row["image"] for row in results["images"]] == ["a", "b"]
    assert results["mean"]["l1"] == pytest.approx(np.mean([row["l1"] for row in results["images"]]))


def test_latent_of_another_generator_or_file_is_refused(projected, tmp_path):
    path = library.save_latent(tmp_path / "x.safetensors", projected[0].latent)
    other = tiny_generator()
    with torch.no_grad():
        other.synthesis.b8.conv0.weight += 1
    with pytest.raises(ValueError, match=r"found in g\.safetensors, and this is another generator"):
        library.load_latent(path).image(other)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged"):
        library.load_latent(path)
    with pytest.raises(ValueError, match=r"there is no model file .*gone"):
        library.load_latent(tmp_path / "gone.safetensors")
    models = write_models(tmp_path)
    with pytest.raises(ValueError, match="holds a gan model, not a latent"):
        library.load_latent(models["gan"])
    library.save_latent(path, projected[0].latent)
    with pytest.raises(ValueError, match="holds a latent model"):
        load_model(path, "gan")


def test_names_of_images_are_told_apart(tmp_path):
    paths = [tmp_path / name for name in ("a.png", "x/a.png", "y/a.png", "a-2.png", "b.png")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), "red").save(path)
    found = read_pictures(paths, 16)
    images, names = found.images, found.names
    assert images.shape == (5, 3, 16, 16) and images[0, :, 0, 0].tolist() == [1, -1, -1]
    assert names == ["a", "a-2", "a-3", "a-2-2", "b"]


def test_other_sizes_are_cropped_with_a_line(tmp_path, caplog):
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:30] = 255  # the square in the middle
    Image.fromarray(wide).save(tmp_path / "wide.png")
    with caplog.at_level("INFO"):
        images = read_pictures([tmp_path / "wide.png"], 16).images
    assert images.min() > 0.9
    assert "wide.png is 40x20 px: centre-cropped and resized to 16 px" in caplog.text


def subject(generator: Generator, names: list[str]) -> Subject:
    return Subject(generator, Path("g"), torch.device("cpu"), names, DatasetConfig())


def test_class_of_a_conditional_generator():
    loaded = subject(tiny_generator(c_dim=3), ["cat", "dog", "owl"])
    conditions = library.class_conditions
    assert conditions(loaded, "dog", None, 2).tolist() == [[0, 1, 0]] * 2
    assert conditions(loaded, "2", None, 1).tolist() == [[0, 0, 1]]
    assert conditions(loaded, None, torch.tensor([2, 0]), 2).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert conditions(loaded, "dog", torch.tensor([2]), 1).tolist() == [[0, 1, 0]]
    for wrong in ("fox", "3", "-1"):
        with pytest.raises(ValueError, match=f"class_name {wrong}: unknown; give an index from 0 to 2 or one of cat"):
            conditions(loaded, wrong, None, 1)
    with pytest.raises(ValueError, match=r"class_name: g.* is a conditional generator; name the class .*index from 0"):
        conditions(loaded, None, None, 1)
    plain = subject(tiny_generator(), ["cat"])
    assert conditions(plain, None, torch.tensor([0]), 1) is None
    with pytest.raises(ValueError, match="class_name cat: g is no conditional generator"):
        conditions(plain, "cat", None, 1)


def test_progress_figure_shows_the_way(projected):
    figure = progress_figure(projected[0])
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert {"target", "mean style", "end, step 12", "LPIPS"} <= set(texts)
    assert f"{projected[0].snapshot_distances[-1]:.3f}" in texts
    table, curve = figure.axes
    assert len(table.images) == 1 + len(projected[0].snapshot_steps)
    np.testing.assert_array_equal(curve.lines[0].get_ydata(), projected[0].distances)


# --- the command -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def options(models):
    parts = {
        "--gan": models["gan"],
        "--classifier": models["classifier"],
        "--distance": "classifier",
        "--device": "cpu",
    }
    return ["--device", "cpu", *(part for pair in parts.items() for part in pair)]


def write_image(name: str, size: tuple[int, int] = (32, 32)) -> Path:
    path = Path(name)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(path)
    return path


def test_command_projects_image_files(options):
    files = [write_image("one.png"), write_image("two.jpg", (50, 40))]
    answer = Answer("project", *files, *options, "--steps", 3, "--space", "w+", "--out", "out").went_well()
    assert "two.jpg is 50x40 px: centre-cropped and resized to 32 px" in answer.err and "one.png is" not in answer.err
    written = sorted(path.name for path in Path("out").iterdir())
    wanted = [
        f"{name}-{kind}" for name in ("one", "two") for kind in ("latent.safetensors", "pair.png", "progress.png")
    ]
    assert written == sorted([*wanted, "results.json"])
    results = json.loads(Path("out/results.json").read_text())
    assert results["distance"] == "classifier" and results["space"] == "w+" and results["steps"] == 3
    assert all(name in answer.out for name in written)


def test_command_takes_images_of_the_dataset(options):
    Answer("project", *options, "--steps", 1, "--image-indices", "3,5", "--out", "out").went_well()
    results = json.loads(Path("out/results.json").read_text())
    assert [row["image"] for row in results["images"]] == ["birds-test-3", "birds-test-5"]


def test_mistakes_are_named_and_nothing_is_written(options):
    Path("notes.png").write_text("no image")
    image = write_image("one.png")
    refusals = [
        (["notes.png"], ["notes.png cannot be used as an image"]),
        (["gone.png"], ["gone.png"]),
        ([image, "--space", "z"], ["--space z", "w or w+"]),
        ([image, "--learning-rate", "-1"], ["learning_rate is -1"]),
        ([image, "--distance", "l2"], ["--distance l2", "auto, lpips, classifier"]),
        ([image, "--class", "finch"], ["--class finch", "no conditional generator"]),
        ([image, "--image-indices", "3"], ["--image-indices", "not both"]),
        (["--image-indices", "400"], ["--image-indices 400", "out of range"]),
    ]
    for arguments, texts in refusals:
        Answer("project", *options, *arguments).refused(*texts)
    assert Answer("project", image, *options, "--steps", 0).code == 2
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


def test_command_takes_a_published_generator(options):
    pickle = Path(__file__).parent / "golden" / "stylegan2" / "nvidia_format.pkl"
    Answer("import-gan", pickle, "--output", "g.safetensors").went_well()
    image = write_image("one.png")
    Answer("project", image, *options, "--gan", "g.safetensors", "--steps", 2, "--out", "out").went_well()
    again = library.load_latent(Path("out/one-latent.safetensors")).image(load_model(Path("g.safetensors")).model)
    pair = np.asarray(Image.open("out/one-pair.png"))
    assert (pair[:, -32:] == library.to_pixels(again[None])[0]).all()
    refused = Answer("project", image, "--gan", "g.safetensors", "--distance", "classifier", "--out", "other")
    refused.refused("nvidia_format", "--classifier")
    assert not Path("other").exists()
