"""Starting from other weights: what fits is loaded, what does not is named, and parts of D stay frozen."""

import logging
from pathlib import Path

import pytest
import timm
import torch
from tiny_models import tiny_recipe
from torch import nn

from stylegan2_ada.networks import Discriminator, Generator
from stylegan2_ada.nvidia_pickle import read_network_pickle
from stylegan2_ada.training import GanSettings, GanTrainer
from stylegan2_ada.transfer import Transfer, freeze_highest, load_fitting
from viscoin.models.classifier import Classifier
from viscoin.models.files import FORMAT, save_model, write_file
from viscoin.runs.run import Run
from viscoin.training.gan import build_discriminator, build_generator
from viscoin.training.gan_transfer import partners, partners_path, read_transfer, save_partners, take_over

GOLDEN = Path(__file__).parent / "golden" / "stylegan2"
RECIPE = tiny_recipe(dataset__resolution=16)


def networks(resolution: int = 16, seed: int = 0, **changes) -> tuple[Generator, Discriminator]:
    torch.manual_seed(seed)
    config = RECIPE.gan.model_copy(update=changes)
    return build_generator(config, resolution), build_discriminator(config, resolution)


def trainer(resolution: int = 16, seed: int = 1, **changes) -> GanTrainer:
    return GanTrainer(*networks(resolution, seed, **changes), GanSettings(batch_size=4))


def same(module: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), other.state_dict().values()))


# --- what fits ---------------------------------------------------------------------------------------------------


def test_all_fits_a_network_of_the_same_shape():
    (one, _), (other, _) = networks(seed=0), networks(seed=1)
    report = load_fitting(other, {key: value.double() for key, value in one.state_dict().items()})
    assert same(one, other) and (report.left_out, report.fresh) == ([], [])
    assert report.loaded == list(one.state_dict())


def test_misfits_are_left_out_and_named():
    """From 32 to 16 px: the highest block has no place; from 4 to 6 layers of mapping some start fresh."""
    (large, _), (small, _) = networks(32, w_dim=8), networks(16, seed=1, mapping_layers=3)
    fresh = small.mapping.fc2.weight.detach().clone()
    report = load_fitting(small, large.state_dict())
    assert torch.equal(small.synthesis.b16.conv1.weight, large.synthesis.b16.conv1.weight)
    assert set(report.left_out) == {name for name in large.state_dict() if name.startswith("synthesis.b32.")}
    assert report.fresh == ["mapping.fc2.weight", "mapping.fc2.bias"]
    assert torch.equal(small.mapping.fc2.weight, fresh)
    assert len(report.loaded) + len(report.left_out) == len(large.state_dict())


def test_shapes_count_as_well_as_names():
    (narrow, _), (wide, _) = networks(), networks(seed=1, w_dim=12)
    report = load_fitting(wide, narrow.state_dict())
    assert "synthesis.b8.conv0.affine.weight" in report.left_out and "synthesis.b8.conv0.affine.weight" in report.fresh
    assert "synthesis.b8.conv0.weight" in report.loaded


def test_nothing_that_fits_is_an_error():
    generator, discriminator = networks()
    filters = {key: value for key, value in generator.state_dict().items() if key.endswith("resample_filter")}
    for state in ({}, {"a.weight": torch.zeros(3, 2)}, filters):
        with pytest.raises(
            ValueError, match=r"no weight fits by name and shape: wanted are synthesis.b4.const"
        ) as caught:
            load_fitting(generator, state)
    with pytest.raises(ValueError, match=r"given are a\.weight \(3, 2\)"):
        load_fitting(discriminator, {"a.weight": torch.zeros(3, 2)})
    assert "\n" not in str(caught.value)


def test_summary_names_the_first_few():
    report = Transfer(["a", "b"], ["c", "d", "e", "f"], ["g"])
    assert report.summary() == "2 weights loaded, 4 left out (c, d, e, …), 1 start fresh (g)"
    assert Transfer(["a"]).summary() == "1 weights loaded"


# --- Freeze-D ----------------------------------------------------------------------------------------------------


def test_highest_layers_are_frozen():
    discriminator = networks()[1]
    assert freeze_highest(discriminator, 0) == []
    assert freeze_highest(discriminator, 5) == ["b16.fromrgb", "b16.conv0", "b16.conv1", "b16.skip", "b8.conv0"]
    frozen = {name.rpartition(".")[0] for name, value in discriminator.named_parameters() if not value.requires_grad}
    assert frozen == {"b16.fromrgb", "b16.conv0", "b16.conv1", "b16.skip", "b8.conv0"}


def test_more_layers_than_there_are_cannot_be_frozen():
    with pytest.raises(ValueError, match=r"8 layers cannot be frozen; this discriminator has 0 to 7"):
        freeze_highest(networks()[1], 8)
    with pytest.raises(ValueError, match=r"gan\.freeze_d 8: 8 layers cannot be frozen"):
        networks(freeze_d=8)


def test_frozen_layers_do_not_train():
    mine = trainer(freeze_d=4)
    before = {name: value.clone() for name, value in mine.discriminator.state_dict().items()}
    mine.step(torch.zeros(4, 3, 16, 16), 0)
    after = mine.discriminator.state_dict()
    changed = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"b8", "b4"}


# --- sources -----------------------------------------------------------------------------------------------------


def test_transfer_from_a_run_takes_all_three_networks(tmp_path, caplog):
    run = Run.create("gan", RECIPE, tmp_path / "run")
    old = trainer(seed=5)
    old.step(torch.zeros(4, 3, 16, 16), 0)
    run.save_checkpoint("last", {"step": 1, "best": None, "task": old.state_dict()})
    new = trainer(seed=6)
    with caplog.at_level(logging.INFO):
        take_over(new, run.path)
    for part in ("generator", "discriminator", "ema"):
        assert same(getattr(new, part), getattr(old, part)), part
    assert not same(new.ema, new.generator)
    assert [line.split(":")[0] for line in caplog.messages] == [
        "transfer to the generator",
        "transfer to the averaged generator",
        "transfer to the discriminator",
    ]


def test_transfer_from_a_model_leaves_the_discriminator_fresh(tmp_path, caplog):
    generator = networks(seed=5)[0]
    path = save_model(tmp_path / "g.safetensors", generator, "gan", recipe=RECIPE, class_names=["a", "b"])
    new, untouched = trainer(seed=6), trainer(seed=6)
    with caplog.at_level(logging.INFO):
        take_over(new, path)
    assert same(new.generator, generator) and same(new.ema, generator)
    assert same(new.discriminator, untouched.discriminator)
    assert "holds no discriminator; it starts fresh" in caplog.messages[-1]
    (tmp_path / "run").mkdir()
    path.rename(tmp_path / "run" / "model.safetensors")
    assert set(read_transfer(tmp_path / "run")) == {"generator", "ema"}


def test_a_model_goes_on_with_the_partners_that_lie_beside_it(tmp_path, caplog):
    old, new, half = trainer(seed=5), trainer(seed=6), trainer(seed=7)
    for one in (old, new, half):
        one.encoder = timm.create_model("viscoin_resnet10", num_classes=old.ema.w_dim)
    path = save_model(tmp_path / "g.safetensors", old.ema, "gan", recipe=RECIPE, class_names=["a", "b"])
    save_partners(partners_path(path), partners(old), RECIPE)
    take_over(new, path)
    for part in ("ema", "discriminator", "encoder"):
        assert same(getattr(new, part), getattr(old, part)), part
    save_partners(partners_path(path), partners(old), RECIPE, torch.float16)
    take_over(half, path)
    torch.testing.assert_close(half.encoder.conv1.weight, old.encoder.conv1.weight, atol=1e-3, rtol=1e-3)
    assert (
        partners_path(path).stat().st_size
        < 1.1
        * sum(2 * value.numel() for part in (old.discriminator, old.encoder) for value in part.state_dict().values())
        + 20_000
    )
    without = trainer(seed=8)
    take_over(without, path)  # it has no encoder to give weights to
    assert same(without.discriminator, half.discriminator)
    write_file(partners_path(path), {}, {"format": FORMAT, "kind": "gan"})
    with pytest.raises(ValueError, match=r"g-partners\.safetensors: it holds no discriminator of a gan training"):
        take_over(new, path)


def test_transfer_from_a_published_pickle():
    path = GOLDEN / "nvidia_format.pkl"
    published = read_network_pickle(path)
    nets = Generator(**published.G.config), Discriminator(**published.D.config)
    mine = GanTrainer(*nets, GanSettings(batch_size=4))
    take_over(mine, path)
    for part, state in (("generator", published.G), ("discriminator", published.D), ("ema", published.G_ema)):
        assert all(torch.equal(value, state.state[key]) for key, value in getattr(mine, part).state_dict().items())


def test_transfer_from_a_pickle_of_our_own(tmp_path):
    generator = networks(seed=5)[0]
    path = save_model(tmp_path / "g.pkl", generator, "gan", recipe=RECIPE, class_names=["a", "b"])
    new = trainer(seed=6)
    take_over(new, path)
    assert same(new.generator, generator)


def test_useless_sources_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"gan.transfer .*nowhere\.pkl: there is no such model file or gan run folder"):
        read_transfer(tmp_path / "nowhere.pkl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="there is no such model file or gan run folder"):
        read_transfer(tmp_path / "empty")
    narrow = networks()[0]
    path = save_model(tmp_path / "g.safetensors", narrow, "gan", recipe=RECIPE, class_names=["a", "b"])
    with pytest.raises(ValueError, match=r"gan.transfer .*g\.safetensors: generator: no weight fits by name and shape"):
        take_over(trainer(w_dim=12, channel_base=512, channel_max=20, z_dim=9), path)
    classifier = save_model(
        tmp_path / "f.safetensors",
        Classifier("viscoin_resnet10", 2, 32),
        "classifier",
        recipe=RECIPE,
        class_names=["a", "b"],
    )
    with pytest.raises(ValueError, match=r"f\.safetensors: it is a classifier model; a gan model is needed"):
        read_transfer(classifier)
