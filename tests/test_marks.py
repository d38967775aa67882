"""Regions that people mark on single images: the file of them, and how the service keeps it for a training."""

import json
import shutil

import numpy as np
import pytest
from test_penalties import plain
from test_serving import API, client, is_problem, served  # noqa: F401  # fixtures
from tiny_models import tiny_recipe

from viscoin.datasets import load_dataset
from viscoin.errors import Refused
from viscoin.runs.kept import keep_content
from viscoin.runs.run import Run
from viscoin.serving import marks as serving
from viscoin.training.regions import find_region, read_marks

# Columns of a mask of 4 x 4: nothing, the lower half, all, nothing.
MASK = {"size": [4, 4], "counts": [6, 6, 4]}
BOX = [0, 0, 0.5, 0.25]


# --- the file -----------------------------------------------------------------------------------------------------


def test_a_mask_in_run_lengths_is_what_coco_means():
    wanted = [[0, 0, 1, 0], [0, 0, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0]]
    found = read_marks({"0": {"mask": MASK}, "1": {"mask": MASK, "boxes": [BOX]}, "2": BOX}, plain())["train"]
    assert found[0].draw(4).astype(int).tolist() == wanted
    assert found[1].draw(4).astype(int).tolist() == [[1, 1, 1, 0], *wanted[1:]]
    assert found[2].draw(4).sum() == 2
    assert np.array_equal(found[0].draw(8), found[0].draw(4).repeat(2, 0).repeat(2, 1))  # stretched
    wide = read_marks({"0": {"mask": {"size": [2, 3], "counts": [0, 2, 3, 1]}}}, plain())["train"][0]
    assert wide.draw(6).astype(int).tolist() == [[1, 1, 0, 0, 0, 0]] * 3 + [[1, 1, 0, 0, 1, 1]] * 3


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ({}, "nothing is marked on it"),
        ({"boxes": []}, "nothing is marked on it"),
        ({"box": BOX}, "a mark takes no 'box'"),
        ({"boxes": [[0, 0, 2, 1]]}, "no box within the image"),
        ({"mask": {"size": [4, 4]}}, "a mask has size and counts"),
        ({"mask": [1]}, "a mask has size and counts"),
        ({"mask": {"size": [4, 4], "counts": [15]}}, "have the sum 4 x 4, not 15"),
        ({"mask": {"size": [4, 4], "counts": [16]}}, "its mask is empty"),
        ({"mask": {"size": [4, 4], "counts": [17, -1]}}, "numbers from 0 on"),
        ({"mask": {"size": [4, 4], "counts": [15.0, 1.0]}}, "numbers from 0 on"),
        ({"mask": {"size": [4, 4], "counts": "16"}}, "numbers from 0 on"),
        ({"mask": {"size": [4], "counts": [3, 1]}}, r"\[height, width\]"),
        ({"mask": {"size": [0, 4], "counts": [0, 0]}}, "from 1 to 2048"),
        ({"mask": {"size": [10**9, 10**9], "counts": [0, 10**18]}}, "from 1 to 2048"),
    ],
)
def test_marks_that_are_none_are_refused(tmp_path, mark, said):
    run = Run.create("classifier", tiny_recipe(), tmp_path / "run")
    kept = keep_content(run.path, json.dumps({"3": mark}).encode(), ".json")
    with pytest.raises(Refused, match=said):
        find_region(kept, plain(), run)


def test_indices_of_both_splits_are_checked_where_they_are_known():
    given = {"train": {"7": BOX}, "validation": {"7": BOX}}
    assert read_marks(given, plain(), plain(9, split="validation")).keys() == {"train", "validation"}
    with pytest.raises(ValueError, match="image 7: there are 7"):
        read_marks(given, plain(), plain(7, split="validation"))
    for name in ("٣", "8", "-1", "9" * 5000):
        with pytest.raises(ValueError, match=r"there are 8|is no training image"):
            read_marks({name: BOX}, plain())


# --- the service --------------------------------------------------------------------------------------------------


@pytest.fixture
def live(served):  # noqa: F811
    """A run that trains, as far as the service can see."""
    run = Run.create("classifier", tiny_recipe(), served[2] / "live")
    with run.lock():
        yield run
    shutil.rmtree(run.path)


def sent(client, body, run="live"):  # noqa: F811
    return client.post(f"{API}/runs/{run}/marks", json=body)


def test_marks_are_kept_in_the_run_and_are_a_region_there(client, live):  # noqa: F811
    body = {"train": {"5": {"boxes": [BOX]}, "12": {"mask": MASK}}, "validation": {"3": {"boxes": [BOX], "mask": MASK}}}
    answer = sent(client, body)
    assert answer.status_code == 201, answer.text
    found = answer.json()
    assert (found["train"], found["validation"]) == (2, 1) and sent(client, body).json() == found
    data = tiny_recipe().dataset
    region = find_region(found["region"], load_dataset("birds", "train", data), live)
    assert region.marked_of(load_dataset("birds", "train", data)).tolist() == [5, 12]
    assert region.mask(load_dataset("birds", "validation", data), 3).sum() > 128
    values = {"do": "add", "penalty": "swap", "region": found["region"], "share": 0.5}
    command = client.post(f"{API}/runs/live/commands", json={"command": "penalty", "values": values})
    assert command.status_code == 202 and len(list((live.path / "inbox").glob("*.json"))) == 1


def boxes(count):
    return {"boxes": [BOX] * count}


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 422, "train"),
        ({"train": {}}, 422, "train"),
        ({"train": [1]}, 422, "train"),
        ({"train": {"1": boxes(1)}, "test": {"1": boxes(1)}}, 422, "test"),
        ({"train": {"1": {}}}, 422, "image 1: nothing is marked"),
        ({"train": {"100000": boxes(1)}}, 422, "image 100000: there are"),
        ({"train": {"-1": boxes(1)}}, 422, "train"),
        ({"train": {"../1": boxes(1)}}, 422, "train"),
        ({"train": {"1": boxes(1)}, "validation": {"24": boxes(1)}}, 422, "image 24: there are 24"),
        ({"train": {"1": {"boxes": [[0, 0, 1.5, 1]]}}}, 422, "boxes"),
        ({"train": {"1": {"boxes": [[0, 0, "nan", 1]]}}}, 422, "boxes"),
        ({"train": {"1": {"boxes": [[0.5, 0, 0.5, 1]]}}}, 422, "no box within the image"),
        ({"train": {"1": {"boxes": [[0.001, 0, 0.002, 1]]}}}, 422, "train image 1: what is marked covers no pixel"),
        ({"train": {"1": {"mask": {"size": [4, 4], "counts": [17]}}}}, 422, "have the sum 4 x 4, not 17"),
        ({"train": {"1": {"mask": {"size": [4096, 4096], "counts": [0, 4096**2]}}}}, 422, "size"),
        ({"train": {"1": {"mask": {"size": [4, 4], "counts": [0, 16], "path": "/etc"}}}}, 422, "path"),
        ({"train": {"1": boxes(65)}}, 422, "boxes"),
        ({"train": {str(i): boxes(1) for i in range(1001)}}, 422, "train"),
    ],
)
def test_marks_that_do_not_fit_leave_nothing(client, live, body, status, said):  # noqa: F811
    problem = is_problem(sent(client, body), status)
    assert said in problem["detail"], problem
    assert not (live.path / "regions").exists() and str(live.path) not in json.dumps(problem)


def test_size_and_number_of_files_are_limited(client, live, monkeypatch):  # noqa: F811
    monkeypatch.setattr(serving, "MOST_KEPT", 2)
    for number in (1, 2):
        assert sent(client, {"train": {str(number): boxes(1)}}).status_code == 201
    is_problem(sent(client, {"train": {"3": boxes(1)}}), 409, "keeps 2 files")
    assert sent(client, {"train": {"2": boxes(1)}}).status_code == 201  # it is there already
    monkeypatch.setattr(serving, "LARGEST", 100)
    is_problem(sent(client, {"train": {"4": boxes(9)}}), 413, "at most 100 are kept")


def test_runs_that_take_no_marks(client, served, live, tmp_path, monkeypatch):  # noqa: F811
    body = {"train": {"1": boxes(1)}}
    is_problem(sent(client, body, "none"), 404, "no run")
    is_problem(sent(client, body, "..%2flive"), 404)
    runs = served[2]
    for name, kind, changes, said in (
        ("of-other-images", "classifier", {"dataset__seed": 7}, "has the images of run of-other-images"),
        ("of-a-gan", "gan", {}, "kind gan has no penalties"),
    ):
        with Run.create(kind, tiny_recipe(**changes), runs / name).lock():
            is_problem(sent(client, body, name), 409, said)
    Run.create("classifier", tiny_recipe(), runs / "over")
    is_problem(sent(client, body, "over"), 409, "nothing trains in run over")
    (live.path / "regions").symlink_to(tmp_path, target_is_directory=True)
    is_problem(sent(client, body), 409, "no folder of its own")
    (live.path / "regions").unlink()
    assert list(tmp_path.iterdir()) == []

    def full(*_args, **_more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    is_problem(sent(client, body), 507, "No space left")


def test_a_read_only_service_keeps_no_marks(served):  # noqa: F811
    from fastapi.testclient import TestClient

    from viscoin.serving.app import create_app
    from viscoin.serving.state import Settings

    settings = Settings([("viscoin", None)], served[2], "cpu", read_only=True)
    Run.create("classifier", tiny_recipe(), served[2] / "shown")
    readers = TestClient(create_app(settings), base_url="http://localhost")
    is_problem(sent(readers, {"train": {"1": boxes(1)}}, "shown"), 403, "read-only")
