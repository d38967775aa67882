"""Options of `train gan`: presets, classes, augmentation, devices, precision, and what is refused."""

import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image
from tiny_models import Answer, tiny_recipe, write_images

from stylegan2_ada import distributed
from stylegan2_ada.augment import PRESETS
from stylegan2_ada.loss import PathLengthRegularizer
from stylegan2_ada.networks import Discriminator, Generator
from stylegan2_ada.training import GanSettings, GanTrainer
from viscoin.config import AugmentPreset, GanConfig, load_recipe
from viscoin.inference.devices import check_devices
from viscoin.models.files import load_model, read_file
from viscoin.presets import gan_preset, gan_presets
from viscoin.processes import is_first_process
from viscoin.runs.run import Run, read_metrics
from viscoin.training import loop
from viscoin.training.gan import GanTask, _keep_last, _save_grid, check_gan, choose_precision, load_images, train_gan
from viscoin.training.runtime import Runtime, make_fabric

ROOT = Path(__file__).parents[1]
RECIPE = tiny_recipe(
    dataset__resolution=16,
    dataset__train=24,
    dataset__validation=8,
    gan__warm_start=0,
    gan__kimg=0.04,
    gan__batch_size=8,
    gan__channel_base=128,
    gan__reconstruction=0,
)
TINY = [
    part
    for key, value in {
        "dataset.resolution": 16, "dataset.train": 24, "dataset.validation": 8, "dataset.classes": 3, "gan.z_dim": 8,
        "gan.w_dim": 8, "gan.channel_base": 128, "gan.channel_max": 8, "gan.mapping_layers": 2,
        "gan.snapshot_kimg": 0.016, "gan.reconstruction": 0, "gan.warm_start": 0,
    }.items()
    for part in ("--set", f"{key}={value}")
]  # fmt: skip


@pytest.fixture(autouse=True)
def surroundings(tmp_path_factory, monkeypatch):
    """No waiting for disks, and an empty folder to work in."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def gan(**changes):
    """The tiny recipe with changes of its gan section."""
    return RECIPE.model_copy(update={"gan": GanConfig.model_validate(RECIPE.gan.model_dump() | changes)})


# --- presets -----------------------------------------------------------------------------------------------------

COLUMNS = ("batch_size", "mbstd_group", "channel_base", "learning_rate", "r1_gamma", "ema_kimg", "ema_rampup",
           "mapping_layers", "kimg")  # fmt: skip
PUBLISHED = {  # ADA paper, Appendix C
    "stylegan2": (32, 4, 32768, 0.002, 10, 10, None, 8, 25000),
    "paper256": (64, 8, 16384, 0.0025, 1, 20, None, 8, 25000),
    "paper512": (64, 8, 32768, 0.0025, 0.5, 20, None, 8, 25000),
    "paper1024": (32, 4, 32768, 0.002, 2, 10, None, 8, 25000),
    "cifar": (64, 32, 32768, 0.0025, 0.01, 500, 0.05, 2, 100000),
}
AUTO = {  # resolution, devices
    (64, 1): (32, 4, 16384, 0.0025, 0.0002 * 64**2 / 32, 10, 0.05, 2, 25000),
    (256, 1): (16, 4, 16384, 0.0025, 0.0002 * 256**2 / 16, 5, 0.05, 2, 25000),
    (256, 8): (64, 4, 16384, 0.0025, 0.0002 * 256**2 / 64, 20, 0.05, 2, 25000),
    (512, 2): (16, 4, 32768, 0.0025, 0.0002 * 512**2 / 16, 5, 0.05, 2, 25000),
    (1024, 8): (32, 4, 32768, 0.002, 0.0002 * 1024**2 / 32, 10, 0.05, 2, 25000),
    (1024, 1): (4, 4, 32768, 0.002, 0.0002 * 1024**2 / 4, 1.25, 0.05, 2, 25000),
    (64, 128): (128, 1, 16384, 0.0025, 0.0002 * 64**2 / 128, 40, 0.05, 2, 25000),
}
COMMON = {
    "z_dim": 512, "w_dim": 512, "channel_max": 512, "num_fp16_res": 4, "conv_clamp": 256, "w_avg_beta": 0.995,
    "r1_interval": 16, "path_length_interval": 4, "augment": "ada", "augment_preset": "bgc", "ada_target": 0.6,
    "ada_kimg": 500, "warm_start": 0, "reconstruction": 0, "conditional": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "size", "row"),
    [(name, (256, 8), row) for name, row in PUBLISHED.items()] + [("auto", size, row) for size, row in AUTO.items()],
)
def test_presets_are_as_published(name, size, row):
    values = gan_preset(name, *size)
    assert {key: values[key] for key in COLUMNS} == dict(zip(COLUMNS, row, strict=True))
    assert {key: values[key] for key in COMMON} == COMMON
    cifar = name == "cifar"
    assert (values["style_mixing"], values["path_length_weight"]) == ((0, 0) if cifar else (0.9, 2))
    assert values["discriminator"] == ("orig" if cifar else "resnet")


def test_all_presets_are_valid_and_complete():
    assert gan_presets() == ["auto", "stylegan2", "paper256", "paper512", "paper1024", "cifar", "birds64"]
    for name in gan_presets():
        assert GanConfig.model_validate(gan_preset(name, 256)).model_dump() == gan_preset(name, 256)
    assert gan_preset("birds64", 64) == load_recipe("birds").gan.model_dump()
    with pytest.raises(ValueError, match=r"preset paper128: unknown; choose auto, stylegan2, paper256"):
        gan_preset("paper128", 128)


def test_options_win_over_settings_and_these_over_the_preset():
    options = ["--preset", "paper256", "--batch-size", 16, "--set", "gan.r1_gamma=7", "--set", "gan.batch_size=48"]
    found = Answer("train", "gan", *options, *TINY, "--dry-run").went_well().out
    for text in ("batch_size: 16\n", "r1_gamma: 7.0\n", "learning_rate: 0.0025\n", "mbstd_group: 8\n", "z_dim: 8\n"):
        assert text in found, text
    assert "warm_start: 0" in found and "augment: ada" in found


def test_preset_auto_follows_resolution_and_devices():
    options = ["--preset", "auto", "--set", "dataset.resolution=32", "--dry-run", "--device", "cpu"]
    assert f"r1_gamma: {0.0002 * 32**2 / 32}\n" in Answer("train", "gan", *options).went_well().out


def test_names_of_augmentations_are_those_of_the_library():
    assert set(get_args(AugmentPreset)) == set(PRESETS)


def test_dry_run_prints_layers_and_leaves_nothing(tmp_path):
    answer = Answer("train", "gan", *TINY, "--freeze-d", 2, "--dry-run", "--out", "run").went_well()
    assert "synthesis.b16.conv1" in answer.out and "8x16x16" in answer.out and "b4.out" in answer.out
    generator, discriminator = (
        next(line for line in answer.out.splitlines() if line.startswith(name))
        for name in ("generator", "discriminator")
    )
    assert "parameters" in generator and "trained" not in generator and "of them trained" in discriminator
    count = sum(
        p.numel()
        for p in Generator(8, 0, 8, 16, 3, {"num_layers": 2}, {"channel_base": 128, "channel_max": 8}).parameters()
    )
    assert f"generator: {count:,} parameters" in generator
    assert not Path("run").exists() and not Path("runs").exists()


# --- refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (["--set", "dataset.resolution=48"], ["dataset.resolution 48", "power of two", "32 or 64"]),
        (["--batch-size", 6], ["--batch-size 6", "groups of 4", "mbstd_group", "multiple of 4"]),
        (["--kimg", 0.001], ["--kimg 0.001", "one batch of 16"]),
        (["--augment", "fixed"], ["augment = fixed needs a strength", "--p"]),
        (["--p", 0.5], ["augment_p = 0.5", "--augment fixed"]),
        (["--augment", "sometimes"], ["gan.augment = 'sometimes'", "'off', 'fixed' or 'ada'"]),
        (["--augment-preset", "abc"], ["gan.augment_preset = 'abc'", "'bgcfnc'"]),
        (["--preset", "paper"], ["--preset paper", "paper256"]),
        (["--freeze-d", 99], ["--freeze-d 99", "0 to"]),
        (["--transfer", "nowhere.pkl"], ["--transfer nowhere.pkl", "no such model"]),
        (["--devices", 1000], ["--devices 1000: there are only"]),
        (["--precision", "16-mixed", "--device", "cpu"], ["--precision 16-mixed", "GPU", "bf16-mixed"]),
    ],
)
def test_refused_in_one_line(options, texts):
    Answer("train", "gan", *TINY, "--device", "cpu", *options, "--out", "run").refused(*texts)
    assert not Path("run").exists()


def test_batches_must_divide_over_devices(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    with pytest.raises(ValueError, match=r"gan\.batch_size 8: does not divide by 3 devices .*choose a multiple of 3"):
        check_gan(RECIPE, Runtime("cpu", devices=3))
    with pytest.raises(ValueError, match=r"gan\.batch_size 12: gives each device 6 images.*multiple of 8"):
        check_gan(gan(batch_size=12), Runtime("cpu", devices=2))
    check_gan(gan(batch_size=16), Runtime("cpu", devices=2, num_nodes=2))
    check_gan(gan(batch_size=2), Runtime("cpu", devices=2))  # one image each: a group of one


def test_devices_that_are_not_there(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with pytest.raises(ValueError, match=r"devices 3: there are only 2 CPU cores here; ask for at most 2"):
        check_devices("cpu", 3, 1)
    with pytest.raises(ValueError, match="devices 0: counts from 1"):
        check_devices("cpu", 0, 1)
    assert check_devices("cpu", 2, 4) == ("cpu", None)


@pytest.mark.parametrize(
    ("name", "value", "first"), [("LOCAL_RANK", "1", False), ("RANK", "0", True), ("SLURM_PROCID", "3", False)]
)
def test_first_process_is_known_from_the_surroundings(monkeypatch, name, value, first):
    assert is_first_process()
    monkeypatch.setenv(name, value)
    assert is_first_process() == first


def test_conditional_training_needs_labels():
    write_images(Path("flat"), {".": 12})
    Answer("train", "gan", *TINY, "--dataset", "flat", "--conditional", "--out", "run").refused(
        "--conditional", "'flat' has no labels", "dataset.json"
    )


# --- precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "precision", "layers", "expected"),
    [
        ("cuda", "16-mixed", 0, (4, 256.0, "32-true", True)),
        ("cuda", "16-mixed", 2, (2, 256.0, "32-true", True)),
        ("cuda", "auto", 4, (4, 256.0, "32-true", True)),
        ("cuda", "auto", 0, (0, None, "auto", False)),
        ("cuda", "bf16-mixed", 4, (0, None, "bf16-mixed", False)),
        ("cuda", "32-true", 4, (0, None, "32-true", False)),
        ("cpu", "auto", 4, (4, None, "auto", False)),
    ],
)
def test_float16_is_the_published_scheme(monkeypatch, device, precision, layers, expected):
    """Never loss scaling: Fabric's 16-mixed would scale gradients that nothing scales back."""
    monkeypatch.setattr("viscoin.training.gan.resolve_device", torch.device)
    config, arithmetic, half = choose_precision(gan(num_fp16_res=layers).gan, Runtime(device, precision))
    assert (config.num_fp16_res, config.conv_clamp, arithmetic.precision, half) == expected


def task(**changes) -> GanTask:
    recipe = gan(**changes)
    images, validation = load_images(recipe, "train"), load_images(recipe, "validation")
    return GanTask(recipe.gan, images, make_fabric(Runtime("cpu", "32-true")), None, validation, half_precision=True)


def test_many_bad_steps_in_a_row_end_a_training_in_float16(monkeypatch):
    monkeypatch.setattr("viscoin.training.gan.PATIENCE", 3)
    mine, nan, good = task(), {"generator": torch.tensor(math.nan)}, {"generator": torch.tensor(1.0)}
    for mine.number, terms in enumerate([nan, nan, good, nan, nan, good, nan, good, nan]):
        mine._count_bad_steps(terms)
    for mine.number in (9, 10, 11):
        mine._count_bad_steps(nan)
    mine.number = 12
    with pytest.raises(ValueError, match=r"step 12: generator = nan"):
        mine._count_bad_steps(nan)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_in_float16():
    """The two highest resolutions run in float16; weights stay in float32 and finite, and nothing is scaled."""
    recipe = gan(num_fp16_res=2, conv_clamp=256, augment="fixed", augment_p=0.5, r1_interval=2, kimg=0.08)
    run = Run.create("gan", recipe, Path("run"))
    dtypes = []
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, args, output: dtypes.append(output.dtype) if isinstance(output, torch.Tensor) else None
    )
    try:
        weights = read_file(train_gan(recipe, run, None, Runtime("cuda", "16-mixed")))[0]
    finally:
        hook.remove()
    assert torch.float16 in dtypes and torch.bfloat16 not in dtypes
    assert all(value.dtype == torch.float32 and torch.isfinite(value).all() for value in weights.values())


def test_values_that_are_not_finite_stay_out_of_the_log():
    terms = [{"a": torch.tensor(value), "b": torch.tensor(math.inf)} for value in (1.0, math.nan, 3.0)]
    assert loop._mean(terms) == {"a": 2.0}


# --- runs --------------------------------------------------------------------------------------------------------


def test_conditional_run_with_augmentation():
    options = [*TINY, "--conditional", "--augment", "ada", "--target", 0.3, "--batch-size", 8, "--kimg", 0.064]
    Answer("train", "gan", *options, "--set", "gan.ada_kimg=0.05", "--device", "cpu", "--out", "run").went_well()
    model = load_model(Path("run/model.safetensors"), "gan")
    assert model.model.c_dim == 3 and len(model.class_names) == 3
    with Image.open("run/figures/samples-000000k.png") as grid:
        assert grid.size == (8 * 18 + 2, 3 * 18 + 2)  # a column for each z, a row for each class
        pixels = np.asarray(grid)
    assert not np.array_equal(pixels[2:18], pixels[20:36])
    line = read_metrics(Path("run/metrics.jsonl"))[-1]
    assert {"train.augment_p", "train.r_t", "train.real_sign"} <= line.keys() and line["train.augment_p"] >= 0
    recipe = Run(Path("run")).recipe
    assert (recipe.gan.conditional, recipe.gan.augment, recipe.gan.ada_target) == (True, "ada", 0.3)


def test_images_of_a_conditional_generator_differ_by_class_alone():
    mine = task(conditional=True, snapshot_psi=0.5)
    mine.trainer.ema.mapping.w_avg.normal_()
    images, columns = mine.samples()
    assert columns == 8 and images.shape == (4 * 8, 3, 16, 16)
    classes = torch.eye(4)[torch.arange(32) // 8]
    z = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).repeat(4, 1)
    expected = mine.trainer.ema(z, classes, truncation_psi=0.5, noise_mode="const")
    torch.testing.assert_close(images, expected.detach(), rtol=1e-4, atol=1e-4)


def test_resumed_run_takes_no_other_classifier():
    options = [*TINY, "--batch-size", 8, "--device", "cpu", "--out", "run"]
    for seed in (0, 1):
        Answer("train", "classifier", *TINY, "--seed", seed, "--epochs", 1,
               "--set", "classifier.batch_size=8", "--out", f"f{seed}").went_well()  # fmt: skip
    Answer("train", "gan", *options, "--kimg", 0.016, "--classifier", "f0").went_well()
    again = [*options, "--kimg", 0.032, "--resume", "--classifier"]
    Answer("train", "gan", *again, "f1").refused("--classifier", "started with another classifier")
    Answer("train", "gan", *again, "f0").went_well()


def test_run_that_began_without_a_classifier_goes_on_without():
    recipe = gan()
    run = Run.create("gan", recipe, Path("run"))
    train_gan(recipe, run, None, Runtime("cpu", "32-true"))
    from viscoin.models.classifier import Classifier

    train_gan(recipe, run, Classifier("viscoin_resnet10", 4, 16), Runtime("cpu", "32-true"))
    assert read_file(run.model_path)[1]["scores"] == {}


def test_only_the_last_models_are_kept():
    for i in (1, 10, 2, 3, 4):
        Path(f"model-{i:06d}k.safetensors").touch()
    Path("last.pt").touch()
    _keep_last(Path(), "model-*.safetensors", 3)
    assert sorted(os.listdir()) == ["last.pt", *(f"model-{i:06d}k.safetensors" for i in (3, 4, 10))]


def test_pictures_are_whole_or_absent(monkeypatch):
    _save_grid(Path("samples.png"), torch.zeros(2, 3, 4, 4))
    before = Path("samples.png").read_bytes()

    def killed(images, path, *arguments, **options):
        Path(path).write_bytes(before[:20])
        raise KeyboardInterrupt

    monkeypatch.setattr("viscoin.training.gan.save_image", killed)
    with pytest.raises(KeyboardInterrupt):
        _save_grid(Path("samples.png"), torch.zeros(2, 3, 4, 4))
    assert Path("samples.png").read_bytes() == before and os.listdir() == ["samples.png"]


def test_pace_without_a_terminal(caplog, monkeypatch):
    assert loop._pace("gan", 50, 200, 64, 0.32) == "gan: step 50 of 200, 3.2 kimg, 5.0 s/kimg, 0:00:48 left"
    recipe = gan()
    monkeypatch.setattr(loop.fit, "__kwdefaults__", loop.fit.__kwdefaults__ | {"report_seconds": 0})
    with caplog.at_level(logging.INFO):
        train_gan(recipe, Run.create("gan", recipe, Path("run")), None, Runtime("cpu", "32-true"))
    assert [line.split(",")[0] for line in caplog.messages if "s/kimg" in line] == [
        f"gan: step {step} of 5" for step in range(1, 6)
    ]


def test_transfer_is_only_for_the_start(caplog):
    options = [*TINY, "--batch-size", 8, "--device", "cpu"]
    Answer("train", "gan", *options, "--kimg", 0.016, "--out", "old").went_well()
    answer = Answer("train", "gan", *options, "--kimg", 0.016, "--transfer", "old", "--out", "new").went_well()
    assert "transfer to the discriminator: " in answer.err
    config = Run(Path("new")).recipe.gan
    assert (config.transfer, config.ema_rampup, config.ada_kimg) == ("old", None, 100)
    again = Answer("train", "gan", *options, "--kimg", 0.024, "--resume", "--out", "new").went_well()
    assert "transfer to" not in again.err


# --- several processes -------------------------------------------------------------------------------------------


def _networks(mbstd_num_channels: int = 1) -> tuple[Generator, Discriminator]:
    torch.manual_seed(3)
    generator = Generator(8, 2, 8, 16, 3, {"num_layers": 2}, {"channel_base": 128, "channel_max": 8})
    epilogue = {"mbstd_num_channels": mbstd_num_channels}
    return generator, Discriminator(2, 16, 3, channel_base=128, channel_max=8, epilogue_kwargs=epilogue)


def _images(n: int) -> torch.Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def _discriminator_gradients(rank: int, world_size: int) -> list[torch.Tensor]:
    """Averaged gradients of one discriminator step on this process's share of 8 images."""
    trainer = GanTrainer(*_networks(0), GanSettings(batch_size=8), labels=torch.arange(2))
    share, condition = slice(rank, None, world_size), torch.eye(2)[torch.arange(8) % 2]
    images, fake = _images(8)[share], _images(16)[8:][share]
    trainer._discriminator_step([(images, condition[share])], [(fake, condition[share])])
    return [value.grad for value in trainer.discriminator.parameters()]


def _work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {"mean": distributed.mean_over_processes(torch.tensor([1.0, 3.0]) * (rank + 1))}
    found["gathered"] = distributed.gather(torch.full((2, 1), float(rank)))
    regularizer = PathLengthRegularizer()
    regularizer(torch.tensor([1.0 + 2 * rank]))
    found["path_length"] = regularizer.mean
    found["gradients"] = _discriminator_gradients(rank, 2)
    torch.manual_seed(rank)
    generator, discriminator = _networks()
    with torch.no_grad():
        for value in generator.parameters():
            value.add_(rank)  # the second process begins elsewhere
    settings = GanSettings(batch_size=8, r1_interval=2, path_length_interval=2)
    trainer = GanTrainer(generator, discriminator, settings, labels=torch.tensor([0, 1, 1]))
    for step in range(4):
        torch.manual_seed(10 * step + rank)
        trainer.step(_images(8)[rank::2], step, torch.arange(4) % 2)
    found["state"] = {
        part: getattr(trainer, part).state_dict() for part in ("generator", "discriminator", "ema", "path_length")
    }
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_share_gradients_and_stay_equal(tmp_path):
    mp.spawn(_work, (str(tmp_path),), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert one["mean"].tolist() == other["mean"].tolist() == [1.5, 4.5]
    assert one["gathered"].flatten().tolist() == [0, 1, 0, 1]  # by turns, as a batch is shared out
    assert one["path_length"] == other["path_length"] == pytest.approx(0.01 * 2)
    alone = _discriminator_gradients(0, 1)
    for a, b, expected in zip(one["gradients"], other["gradients"], alone, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, expected, rtol=1e-4, atol=1e-6)
    for part, state in one["state"].items():
        assert all(torch.equal(value, other["state"][part][key]) for key, value in state.items()), part
    w_avg = one["state"]["generator"]["mapping.w_avg"]
    assert w_avg.any() and torch.equal(w_avg, one["state"]["ema"]["mapping.w_avg"])


@pytest.mark.long
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two CPU cores")
def test_run_on_two_devices():
    """The command itself: one run folder, written by the first process, resumed and finished."""
    base = [sys.executable, str(ROOT / "main.py"), "train", "gan", *TINY, "--batch-size", "8", "--device", "cpu"]
    base += ["--devices", "2", "--augment", "ada", "--conditional", "--out", "run"]
    for more in (["--kimg", "0.024"], ["--kimg", "0.048", "--resume"]):
        done = subprocess.run([*base, *more], capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["run/model.safetensors"]
        assert done.stderr.count("run folder: run") == 1
    assert "going on from step 3" in done.stderr
    assert {path.name for path in Path("run").iterdir()} == {
        ".lock", "recipe.yaml", "metrics.jsonl", "checkpoints", "figures", "model.safetensors", "log.txt",
        "status.json",
    }  # fmt: skip
    assert [line["step"] for line in read_metrics(Path("run/metrics.jsonl"))] == [3, 6]
    state = torch.load("run/checkpoints/last.pt", weights_only=True)
    assert state["step"] == 6 and state["task"]["augmentation"]["controller"]["images"] == 2 * 8
