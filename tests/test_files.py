"""Model files: what is saved comes back; what is damaged, foreign or hostile is refused by name."""

import os
import random
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_recipe

from viscoin.models import files
from viscoin.models.classifier import Classifier
from viscoin.models.files import find_model, load_model, read_file, save_model, write_file
from viscoin.runs.run import Run
from viscoin.training.gan import build_generator
from viscoin.training.viscoin import build_ensemble

NAMES = ["a", "b", "c"]
KINDS = ("classifier", "gan", "viscoin")


@pytest.fixture(scope="module")
def built():
    """One tiny model of each kind, in eval mode, with weights that are nowhere zero."""
    recipe = tiny_recipe(dataset__resolution=16)
    torch.manual_seed(0)
    f = Classifier("viscoin_resnet10", len(NAMES), 16)
    f(torch.randn(8, 3, 16, 16))  # batch-norm statistics that are not those of a fresh network
    g = build_generator(recipe.gan, 16)
    g.mapping.w_avg.normal_()
    models = {"classifier": f, "gan": g, "viscoin": build_ensemble(recipe.viscoin, f, g, NAMES)}
    return {kind: model.eval() for kind, model in models.items()}


@pytest.fixture(scope="module")
def written(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {kind: save(folder / f"{kind}.safetensors", built[kind], kind) for kind in KINDS}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, without shipped models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "ASSETS", tmp_path / "assets")
    return tmp_path


def save(path, model, kind, **options):
    recipe = tiny_recipe(dataset__resolution=16)
    return save_model(path, model, kind, recipe=recipe, class_names=NAMES, scores={"x": 0.25}, **options)


@torch.no_grad()
def outputs(model, kind) -> list[torch.Tensor]:
    """All that a model computes of fixed inputs."""
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    if kind == "classifier":
        return [model(images), *model.features(images).maps]
    if kind == "gan":
        return [model(torch.ones(2, model.z_dim), None, noise_mode="const")]
    code = model.encode(images)
    return [code.logits, code.concept_maps, model.explain(code.concept_maps), model.decode(code.concept_maps, code[3])]


def same(a, b, kind, tolerance=1e-5) -> None:
    for one, other in zip(outputs(a, kind), outputs(b, kind), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pkl"])
def test_model_comes_back(built, written, here, kind, suffix):
    path = here / f"copy{suffix}"
    write_file(path, *read_file(written[kind]))
    loaded = load_model(path, kind)
    assert (loaded.kind, loaded.path, loaded.class_names) == (kind, path, NAMES)
    assert not loaded.model.training
    for key, value in built[kind].state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], value), key
    same(loaded.model, built[kind], kind)


@pytest.mark.parametrize("kind", KINDS)
def test_file_says_where_it_comes_from(written, kind):
    _, metadata = read_file(written[kind])
    recipe = tiny_recipe(dataset__resolution=16)
    assert metadata["kind"] == kind and metadata["dataset"] == "birds" and metadata["format"] == "viscoin/1"
    assert metadata["recipe"] == recipe.model_dump()
    assert metadata["scores"] == {"x": 0.25} and metadata["class_names"] == NAMES
    assert {"torch", "timm", "safetensors"} <= set(metadata["versions"])
    assert metadata["revision"]


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_halves_the_file_and_loads_as_float32(built, written, here, kind):
    path = save(here / "half.safetensors", built[kind], kind, dtype=torch.float16)
    tensors, whole = read_file(path)[0], read_file(written[kind])[0]
    for key, value in tensors.items():
        assert value.dtype == (torch.float16 if whole[key].is_floating_point() else whole[key].dtype), key
    sizes = [sum(value.nbytes for value in part.values()) for part in (tensors, whole)]
    assert 0.49 < sizes[0] / sizes[1] < 0.51
    model = load_model(path).model
    for key, value in built[kind].state_dict().items():
        expected = value.half().float() if value.is_floating_point() else value
        assert torch.equal(model.state_dict()[key], expected) and model.state_dict()[key].dtype == value.dtype, key
    same(model, built[kind], kind, tolerance=0.05)


def test_saving_takes_a_copy(here):
    model = Classifier("viscoin_resnet10", 3, 16).eval()
    path = save(here / "f.safetensors", model, "classifier")
    before = outputs(model, "classifier")[0]
    with torch.no_grad():
        for value in model.parameters():
            value.zero_()
    torch.testing.assert_close(outputs(load_model(path).model, "classifier")[0], before, rtol=1e-5, atol=1e-5)


def test_run_folder_is_a_model(built, here):
    run = Run.create("classifier", tiny_recipe(), here / "run")
    save(run.model_path, built["classifier"], "classifier")
    assert load_model(run.path).path == load_model(str(run.path)).path == run.model_path


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_kind(written, kind):
    for other in set(KINDS) - {kind}:
        with pytest.raises(ValueError, match=rf"{kind}\.safetensors holds a {kind} model; a {other} model is needed"):
            load_model(written[kind], other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_other_weights(written, here, kind, change):
    tensors, metadata = read_file(written[kind])
    key = sorted(tensors)[0]
    if change == "missing":
        del tensors[key]
    elif change == "extra":
        tensors[key := "something.else"] = torch.zeros(2)
    else:
        tensors[key] = torch.zeros(*tensors[key].shape, 2)
    write_file(here / "odd.safetensors", tensors, metadata)
    with pytest.raises(ValueError, match=r"odd\.safetensors: 1 weights do not fit its architecture") as caught:
        load_model(here / "odd.safetensors")
    assert key in str(caught.value)


def test_other_format(written, here):
    tensors, metadata = read_file(written["gan"])
    write_file(here / "new.safetensors", tensors, metadata | {"format": "viscoin/2"})
    with pytest.raises(ValueError, match=r"new\.safetensors has the format 'viscoin/2'.* reads 'viscoin/1'"):
        load_model(here / "new.safetensors")


def test_missing_file(here):
    with pytest.raises(ValueError, match=r"no model file nowhere\.safetensors"):
        load_model(Path("nowhere.safetensors"))


@pytest.mark.parametrize("suffix", [".safetensors", ".pkl"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_files_are_refused_by_name(here, suffix):
    """Cut anywhere, overwritten anywhere, or noise: nothing but a ValueError that names the file."""
    path, draw, refused = here / f"file{suffix}", random.Random(0), 0
    write_file(path, {"a.b": torch.randn(4, 5), "n": torch.zeros(3, dtype=torch.int64)}, {"format": "viscoin/1"})
    whole = path.read_bytes()
    cut = [whole[: len(whole) * i // 20] for i in range(20)]
    overwritten = [bytearray(whole) for _ in range(150)]
    for content in overwritten:
        content[draw.randrange(len(whole))] = draw.randrange(256)
    noise = [draw.randbytes(draw.randrange(1, 300)) for _ in range(30)]
    for i, content in enumerate([*cut, *noise, *overwritten]):
        path.write_bytes(content)
        try:
            read_file(path)
        except ValueError as error:
            assert str(path) in str(error), f"case {i}: {error}"
            refused += 1
        else:
            assert i >= len(cut) + len(noise), f"case {i} was read"
    assert refused > len(cut) + len(noise)


class Hostile:
    """A pickle that would run a shell command."""

    def __init__(self, target: Path) -> None:
        self.command = f"touch {target}"

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("suffix", [".pkl", ".pt", ".safetensors"])
def test_hostile_pickle_runs_nothing(here, inside, suffix):
    target, path = here / "target", here / f"hostile{suffix}"
    content = {"metadata": "{}", "tensors": {"a": Hostile(target)}} if inside else Hostile(target)
    torch.save(content, path)
    with pytest.raises(ValueError, match=f"hostile{suffix} is damaged or not a model file"):
        load_model(path)
    assert not target.exists()
    with path.open("rb") as file:
        torch.load(file, weights_only=False)
    assert target.exists()  # it is hostile indeed


def test_file_of_others(here):
    torch.save({"state_dict": {}}, here / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt"):
        read_file(here / "other.pt")
    torch.save([1, 2], here / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt was not written by viscoin"):
        read_file(here / "list.pt")


def test_failed_write_keeps_the_old_file(here, monkeypatch):
    path = here / "f.safetensors"
    path.write_text("old")

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"cannot write .*f\.safetensors \(No space left on device\)"):
        write_file(path, {"a": torch.zeros(1)}, {})
    assert path.read_text() == "old" and os.listdir(here) == ["f.safetensors"]
    with pytest.raises(ValueError, match=r"cannot write .*f\.safetensors/x\.pkl .*another path"):
        write_file(path / "x.pkl", {}, {})


def finished(kind: str, name: str, created: str) -> Run:
    run = Run.create(kind, tiny_recipe(), Path("runs") / name)
    run.recipe_path.write_text(run.recipe_path.read_text().replace(run.header["created"], created))
    run.model_path.touch()
    return run


def test_find_model_takes_the_given_one(here):
    run = finished("gan", "a", "2024-01-01T00:00:00")
    (here / "x.pkl").touch()
    assert find_model("gan", "x.pkl", "birds") == Path("x.pkl")
    assert find_model("gan", run.path, "birds") == run.model_path


def test_a_relative_path_in_assets_names_a_shipped_model(here):
    shipped = here / "package" / "assets" / "birds" / "gan.safetensors"
    write_file(shipped, {}, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "ASSETS", here / "package" / "assets")
        assert find_model("gan", "assets/birds/gan.safetensors", "photos") == shipped
        with pytest.raises(
            ValueError, match=rf"no model file .*/clone/assets.*; shipped models lie in {files.ASSETS}$"
        ):
            find_model("gan", here / "clone/assets/birds/gan.safetensors", "birds")
        with pytest.raises(ValueError, match=r"package/assets/birds/gam\.safetensors$"):
            find_model("gan", "assets/birds/gam.safetensors", "birds")
        own = here / "assets" / "birds" / "gan.safetensors"
        write_file(own, {}, {})
        assert find_model("gan", "assets/birds/gan.safetensors", "birds") == Path("assets/birds/gan.safetensors")


def test_find_model_prefers_the_newest_finished_run_to_the_shipped_one(here):
    shipped = here / "assets" / "birds" / "gan.safetensors"
    shipped.parent.mkdir(parents=True)
    shipped.touch()
    assert find_model("gan", None, "birds") == shipped
    older = finished("gan", "a", "2024-01-01T00:00:00")
    assert find_model("gan", None, "birds") == older.model_path
    newer = finished("gan", "b", "2024-01-02T00:00:00")
    assert find_model("gan", None, "birds") == newer.model_path
    newer.model_path.unlink()
    assert find_model("gan", None, "birds") == older.model_path


def test_find_model_says_how_to_get_one(here):
    finished("gan", "a", "2024-01-01T00:00:00")
    with pytest.raises(ValueError, match=r"no classifier model of dataset 'birds'.*train classifier `dataset` birds"):
        find_model("classifier", None, "birds")
    with pytest.raises(ValueError, match=r"no gan model of dataset 'scans'.*train gan `dataset` scans"):
        find_model("gan", None, "scans")


def test_find_model_refuses_what_is_not_there(here):
    with pytest.raises(ValueError, match=r"no model file or run folder nowhere"):
        find_model("gan", "nowhere", "birds")
    (here / "folder").mkdir()
    with pytest.raises(ValueError, match=r"run folder folder holds no finished model"):
        find_model("gan", "folder", "birds")
