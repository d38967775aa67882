"""`train all`: three trainings by one command, which goes on where it stopped."""

import pytest
from tiny_models import Answer, set_options, write_images

from viscoin.models.files import load_model
from viscoin.runs.run import newest_run
from viscoin.training import gan

KINDS = ("classifier", "gan", "viscoin")


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_images(tmp_path / "photos", {"cat": 20, "dog": 20}).relative_to(tmp_path)


def train_all(photos, *options):
    return Answer("train", "all", "--dataset", photos, *set_options(), *options)


def weights(run):
    return run.model_path.read_bytes()


def test_all_goes_on_where_it_stopped(photos, monkeypatch):
    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gan, "train_gan", interrupted)
        assert train_all(photos).code == 130
    first = newest_run("classifier", "photos")
    before = weights(first)
    assert newest_run("gan", "photos") is None
    paths = train_all(photos, "--resume").went_well().out.splitlines()
    runs = [newest_run(kind, "photos") for kind in KINDS]
    assert paths == [str(run.model_path) for run in runs]
    assert (runs[0].path, weights(runs[0])) == (first.path, before)
    assert load_model(runs[2].path, "viscoin").class_names == ["cat", "dog"]


def test_runs_of_an_earlier_classifier_are_left_alone(photos):
    train_all(photos).went_well()
    old = {kind: newest_run(kind, "photos") for kind in KINDS}
    for run in old.values():
        run.annotate(created="2026-01-01T00:00:00")
    Answer("train", "classifier", "--dataset", photos, *set_options(), "--out", "runs/new").went_well()
    train_all(photos, "--resume").went_well()
    assert newest_run("classifier", "photos").path.name == "new"
    assert all(newest_run(kind, "photos").path != old[kind].path for kind in KINDS)


def test_what_the_generator_cannot_do_is_said_first(photos, tmp_path):
    train_all(photos, "--set", "dataset.resolution=48").refused("dataset.resolution", "power of two")
    assert not list(tmp_path.glob("runs/*"))
