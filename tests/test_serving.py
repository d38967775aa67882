"""The service by the framework's client on a tiny ensemble: answers are the library's, and errors are problems."""

import base64
import io
import json
import shutil
import threading
import time

import numpy as np
import pytest
import torch
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image
from test_slurm import script_of
from tiny_models import tiny_recipe, write_models

from viscoin.analysis.amplification import amplify_images
from viscoin.analysis.concepts import collect_concepts
from viscoin.attribution import attribute
from viscoin.errors import Refused
from viscoin.models.files import load_model, save_model
from viscoin.runs.run import Run
from viscoin.serving.app import create_app
from viscoin.serving.models import Models
from viscoin.serving.state import Settings
from viscoin.statistics.measures import auroc
from viscoin.training.viscoin import build_ensemble

TOKEN = "a-token-of-the-tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
API = "/api/v1"


def started(app):
    """A client of a service whose models are loaded."""
    client = TestClient(app, base_url="http://localhost", headers=BEARER)
    client.__enter__()
    until = time.monotonic() + 120
    while client.get("/readyz").json()["status"] == "loading" and time.monotonic() < until:
        time.sleep(0.05)
    assert client.get("/readyz").status_code == 200, client.get(f"{API}/models").json()
    return client


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A client, the ensemble that it asks, and the folder of runs."""
    folder = tmp_path_factory.mktemp("service")
    models = write_models(folder / "models")
    (folder / "runs").mkdir()
    names = folder / "names.csv"
    names.write_text("concept,name,reason,validity\n0,,no clear direction,nan\n2,plume crest,,0.91\n5,<b>odd,,0.4\n")
    settings = Settings(
        [("viscoin", models["viscoin"])], folder / "runs", "cpu", token=TOKEN, data_root=folder, names=[names]
    )  # fmt: skip
    client = started(create_app(settings))
    yield client, load_model(models["viscoin"], "viscoin").model, folder / "runs"
    client.__exit__(None, None, None)


@pytest.fixture
def client(served):
    return served[0]


def picture_bytes(size=(40, 30), kind="PNG", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def pixels_of(address):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))


def is_problem(answer, status, text=""):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert found["status"] == status and found["title"] and text in found["detail"], found
    return found


# --- answers are those of the library -------------------------------------------------------------------------------


def test_a_prediction_is_that_of_the_ensemble(served):
    client, ensemble, _ = served
    found = client.post(f"{API}/predict", json={"image": "birds/test/3", "top": 3}).json()
    images = birds("test").batch([3])[0]
    with torch.inference_mode():
        logits, maps = ensemble.concept_maps(images)
        f, g = logits.softmax(1)[0], ensemble.explain(maps).softmax(1)[0]
    assert [row["p"] for row in found["f"]] == pytest.approx(f.topk(3).values.tolist(), abs=1e-6)
    assert [row["class"] for row in found["g"]] == g.topk(3).indices.tolist()
    assert found["agree"] == bool(f.argmax() == g.argmax())
    assert found["label"]["name"] == ensemble.class_names[birds("test").labels[3]]
    k = found["concepts"][0]["concept"]
    assert found["concepts"][0]["activation"] == pytest.approx(float(ensemble.activations(maps)[0, k]), abs=1e-5)


def birds(split):
    from viscoin.datasets import load_dataset

    return load_dataset("birds", split, tiny_recipe().dataset)


def test_an_edit_is_that_of_the_library_and_goes_back_to_the_same_pixels(served):
    client, ensemble, _ = served

    def drawn(factors):
        return client.post(f"{API}/amplify", json={"image": "birds/test/5", "factors": factors}).json()

    images = birds("test").batch([5])[0]
    selection = torch.zeros(1, ensemble.n_concepts, dtype=torch.bool)
    selection[0, 2] = True
    wanted = amplify_images(ensemble, images, selection, [1.0, 3.0])
    plain, edited, back = drawn({}), drawn({"2": 3.0}), drawn({"2": 1.0})
    assert np.abs(pixels_of(plain["picture"]).astype(int) - wanted.images[0, 0]).max() <= 1
    assert np.abs(pixels_of(edited["picture"]).astype(int) - wanted.images[0, 1]).max() <= 1
    assert back["picture"] == plain["picture"] != edited["picture"]
    assert edited["change"] == pytest.approx(float(wanted.changes[0, 1].mean()), abs=1e-6)
    assert edited["f"][0]["p"] == pytest.approx(float(wanted.f_classes[0, 2].max()), abs=1e-5)


def test_a_map_is_that_of_attribute(served):
    client, ensemble, _ = served
    body = {"image": "birds/test/7", "method": "saliency", "classes": [1]}
    found = client.post(f"{API}/explain", json=body).json()
    wanted = attribute(ensemble.classifier, birds("test").batch([7])[0], "saliency", [1]).maps[0].numpy()
    row = found["maps"][0]
    assert row["maximum"] == pytest.approx(float(wanted.max()), rel=1e-4)
    y, x = np.unravel_index(wanted.argmax(), wanted.shape)
    assert row["point"] == [x, y] and set(row["truth"]) == {"parts", "hit"}
    strength = pixels_of(row["picture"])[..., 3] / 255
    assert np.abs(strength - np.sqrt(wanted / wanted.max())).max() < 0.005
    assert client.post(f"{API}/explain", json=body, headers={"Accept": "image/png"}).content[:4] == b"\x89PNG"


def test_an_uploaded_image_can_be_asked_about_again(client):
    content = picture_bytes()
    upload = client.post(f"{API}/images", files={"file": ("odd name.png", content)}).json()[0]
    by_id = client.post(f"{API}/predict", json={"image": upload["image"]}).json()
    at_once = client.post(f"{API}/predict/files", files=[("file", ("a.png", content)), ("file", ("b.png", content))])
    told = [[row["p"] for row in one["f"]] for one in (by_id, *at_once.json())]
    assert by_id["label"] is None and len(told) == 3
    assert np.ptp(told, axis=0).max() < 1e-6
    assert len(at_once.json()) == 2
    is_problem(client.post(f"{API}/predict", json={"image": "0" * 32}), 404, "no image")


def test_concepts_are_sorted_paged_and_shown(client):
    everything = client.get(f"{API}/concepts?sort=concept").json()
    assert [row["concept"] for row in everything["rows"]] == list(range(6))
    shares = [row["active_share"] for row in client.get(f"{API}/concepts?sort=active_share").json()["rows"]]
    assert shares == sorted(shares, reverse=True)
    assert len(client.get(f"{API}/concepts?start=4").json()["rows"]) == 2
    is_problem(client.get(f"{API}/concepts?sort=beauty"), 422, "beauty")
    alive = max(everything["rows"], key=lambda row: row["active_share"])["concept"]
    one = client.get(f"{API}/concepts/{alive}").json()
    assert one["examples"] and len(one["strip"]) == 5 and one["classes"]
    is_problem(client.get(f"{API}/concepts/6"), 404, "no concept 6")


def test_concepts_have_their_names_and_grades(client):
    assert client.get(f"{API}/models").json()[0]["named"] == 2
    rows = client.get(f"{API}/concepts?sort=concept").json()["rows"]
    assert [row["name"] for row in rows][2:6] == ["plume crest (2)", "concept 3", "concept 4", "<b>odd (5)"]
    assert [row["grade"] for row in rows] == [None, None, 0.91, None, None, 0.4]
    found = client.post(f"{API}/predict", json={"image": "birds/test/3"}).json()["concepts"]
    assert {row["concept"]: (row["name"], row["grade"]) for row in found}[2] == ("plume crest (2)", 0.91)
    body = {"image": "birds/test/3", "method": "saliency", "concepts": [2]}
    assert client.post(f"{API}/explain", json=body).json()["maps"][0]["name"] == "plume crest (2)"


def test_concepts_are_tried_on_the_attributes_that_the_images_were_made_from(served):
    client, ensemble, _ = served
    rows = {row["concept"]: row for row in client.get(f"{API}/concepts").json()["rows"]}
    table = collect_concepts(ensemble, birds("test"), limit=400)
    truth, names = birds("test").attributes[table.indices], list(birds("test").attribute_names)
    k = int(table.order[0])
    a = names.index(rows[k]["attribute"])
    assert rows[k]["attribute_auroc"] == pytest.approx(float(auroc(table.activations, truth[:, [a]])[0, k]))
    often = np.minimum(truth.mean(0), 1 - truth.mean(0)) >= 0.05
    assert rows[k]["attribute_auroc"] == pytest.approx(auroc(table.activations, truth[:, often])[:, k].max())
    similar = client.get(f"{API}/concepts/{k}").json()["similar"]
    assert [row["correlation"] for row in similar] == sorted((row["correlation"] for row in similar), reverse=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [("concept,name\n6,x\n", "there is no concept 6"), ("a,b\n", "names.csv"), ("concept,name\n1,x\n1,y\n", "already")],
)
def test_names_of_another_ensemble_are_told(served, tmp_path, text, said):
    file = tmp_path / "names.csv"
    file.write_text(text)
    path = next(iter(served[0].app.state.service.models)).path
    with pytest.raises(Refused, match=said):
        Models("cpu").load([("viscoin", path)], [file])


def test_data_is_shown_page_by_page_and_without_parts(client):
    about = client.get(f"{API}/datasets").json()
    assert about[0]["images"] == {"validation": 24, "test": 40}
    page = client.get(f"{API}/datasets/birds/test?start=38&count=10").json()
    assert [row["image"] for row in page["rows"]] == ["birds/test/38", "birds/test/39"]
    whole, less = (client.get(f"{API}/datasets/birds/test/3.png{query}") for query in ("", "?delete=crest"))
    assert whole.headers["content-type"] == "image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(whole.content))), birds("test").pixels[3])
    tinted = np.asarray(Image.open(io.BytesIO(client.get(f"{API}/datasets/birds/test/3.png?parts=true").content)))
    on_parts = birds("test").part_masks(3).any(0)
    dark = (birds("test").pixels[3] * 0.45).astype(int)
    assert on_parts.any() and np.abs(tinted - dark).max(-1)[~on_parts].max() <= 1
    assert np.abs(tinted - dark).max(-1)[on_parts].min() > 20
    assert sum(page["counts"]) == 40
    assert less.status_code == 200
    is_problem(client.get(f"{API}/datasets/birds/test/3.png?delete=heart"), 422, "heart")


def test_predictions_say_which_classes_are_confused(client):
    found = client.get(f"{API}/predictions?split=test&limit=40").json()
    assert found["images"] == 40 and 0 <= found["accuracy"] <= 1 and len(found["classes"]) == 4
    wrong = sum(row["errors"] for row in found["confused"])
    assert wrong == round((1 - found["accuracy"]) * 40)
    assert found["figures"][0]["picture"].startswith("data:image/svg+xml")


def test_a_fallacy_is_tried_with_the_own_network(client):
    found = client.post(f"{API}/fallacies", json={"image": "birds/test/0", "demo": "shift"}).json()
    assert any("Edges" in line for line in found["summary"]) and found["figures"]


@pytest.fixture(scope="module")
def undrawn(served, tmp_path_factory):
    """A client of an ensemble without a generator, beside a classifier."""
    _, ensemble, runs = served
    folder, recipe = tmp_path_factory.mktemp("undrawn"), tiny_recipe()
    alone = build_ensemble(recipe.viscoin, ensemble.classifier, None, ensemble.class_names)
    paths = {}
    for kind, model in (("viscoin", alone), ("classifier", ensemble.classifier)):
        paths[kind] = save_model(
            folder / f"a-{kind}.safetensors", model, kind, recipe=recipe, class_names=ensemble.class_names
        )
    client = started(create_app(Settings(list(paths.items()), runs, "cpu", token=TOKEN)))
    yield client
    client.__exit__(None, None, None)


def test_an_ensemble_without_a_generator_explains_and_does_not_draw(undrawn):
    about = undrawn.get(f"{API}/models").json()
    assert [(one["kind"], one["draws"]) for one in about] == [("viscoin", False), ("classifier", False)]
    assert undrawn.post(f"{API}/predict", json={"image": "birds/test/1"}).json()["concepts"]
    is_problem(undrawn.post(f"{API}/amplify", json={"image": "birds/test/1"}), 409, "no generator")
    row = max(undrawn.get(f"{API}/concepts").json()["rows"], key=lambda row: row["active_share"])
    found = undrawn.get(f"{API}/concepts/{row['concept']}").json()
    assert found["examples"] and not found["strip"]


def test_a_classifier_alone_has_predictions_and_maps_but_no_concepts(undrawn):
    model = undrawn.get(f"{API}/models").json()[1]["id"]
    found = undrawn.post(f"{API}/predict", json={"image": "birds/test/1", "model": model}).json()
    assert found["g"] is None and found["concepts"] == [] and found["f"]
    body = {"image": "birds/test/1", "model": model, "method": "gradcam"}
    assert undrawn.post(f"{API}/explain", json=body).status_code == 200
    is_problem(undrawn.get(f"{API}/concepts?model={model}"), 409, "classifier alone")
    is_problem(undrawn.post(f"{API}/explain", json={**body, "concepts": [0]}), 409, "classifier alone")


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("predict", {"image": "birds/test/40"}, 404, "there is no 40"),
        ("predict", {"image": "cub/test/1"}, 404, "images of birds"),
        ("predict", {"image": "../../etc/passwd"}, 422, "no id of an image"),
        ("predict", {"image": "birds/test/1", "model": "other"}, 404, "no model"),
        ("predict", {"image": "birds/test/1", "top": 0}, 422, "top"),
        ("predict", {"image": "birds/test/1", "colour": 1}, 422, "colour"),
        ("predict", {}, 422, "image"),
        ("amplify", {"image": "birds/test/1", "factors": {"6": 1}}, 422, "no concept 6"),
        ("amplify", {"image": "birds/test/1", "factors": {"1": -1}}, 422, "greater than or equal to 0"),
        ("amplify", {"image": "birds/test/1", "factors": {"1": 1e308}}, 422, "less than or equal to 16"),
        ("amplify", {"image": "birds/test/1", "factors": {"one": 1}}, 422, "factors"),
        ("amplify", {"image": "birds/test/1", "values": {"1": 1}}, 422, "what is usual"),
        ("explain", {"image": "birds/test/1", "method": "magic"}, 422, "no method"),
        ("explain", {"image": "birds/test/1", "method": "rollout"}, 422, "does not hold"),
        ("explain", {"image": "birds/test/1", "classes": [4]}, 422, "classes: 4 is out of range"),
        ("explain", {"image": "birds/test/1", "classes": [1], "concepts": [1]}, 422, "one at a time"),
        ("fallacies", {"image": "birds/test/1", "demo": "other"}, 422, "demo"),
    ],
)
def test_a_wrong_value_is_a_problem_that_names_it(client, path, body, status, text):
    is_problem(client.post(f"{API}/{path}", json=body), status, text)


@pytest.mark.parametrize("value", ["NaN", "Infinity"])
def test_numbers_that_are_none_are_refused(client, value):
    content = f'{{"image": "birds/test/1", "factors": {{"1": {value}}}}}'
    answer = client.post(f"{API}/amplify", content=content, headers={"Content-Type": "application/json"})
    is_problem(answer, 422, "finite")


def test_what_the_framework_answers_is_a_problem_too(client):
    is_problem(client.get(f"{API}/nothing"), 404)
    is_problem(client.delete(f"{API}/models"), 405)
    broken = client.post(f"{API}/predict", content="{", headers={"Content-Type": "application/json"})
    is_problem(broken, 400)
    is_problem(client.post(f"{API}/images", files={"file": ("a.png", b"0" * (11 << 20))}), 413)
    many = [("file", (f"{i}.png", picture_bytes())) for i in range(17)]
    assert client.post(f"{API}/images", files=many).status_code in (400, 413)


def test_an_error_of_ours_is_told_by_its_number_alone(served, monkeypatch, caplog):
    app = served[0].app

    def broken(*_args):
        raise RuntimeError("a secret")

    monkeypatch.setattr("viscoin.serving.answers.predict", broken)
    quiet = TestClient(app, base_url="http://localhost", headers=BEARER, raise_server_exceptions=False)
    found = is_problem(quiet.post(f"{API}/predict", json={"image": "birds/test/1"}), 500)
    assert "secret" not in json.dumps(found) and found["detail"].split()[-1] in caplog.text


# --- hostile files ----------------------------------------------------------------------------------------------------


def bomb():
    """A small PNG of 400 million pixels."""
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    return buffer.getvalue()


HOSTILE = {
    "svg": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>', 415),
    "tiff": (lambda: picture_bytes(kind="TIFF"), 415),
    "gif": (lambda: picture_bytes(kind="GIF"), 415),
    "text": (lambda: b"no image", 415),
    "empty": (lambda: b"", 415),
    "half a png": (lambda: picture_bytes()[:500], 415),
    "half a jpeg": (lambda: picture_bytes(kind="JPEG")[:300], 415),
    "a bomb": (bomb, 413),
    "a dot": (lambda: picture_bytes((1, 1)), 415),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(client, name):
    make, status = HOSTILE[name]
    is_problem(client.post(f"{API}/images", files={"file": ("x.png", make())}), status)
    assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    "name",
    ["..", "%2e%2e", "..%2f..%2fetc", ".trash", "a/../b", "%00", "a%20b", "-x", "x" * 200, "con%5c..", "~root"],
)
def test_names_do_not_lead_out_of_the_folder_of_runs(client, name):
    for path in (f"runs/{name}", f"runs/{name}/log", f"runs/{name}/figures/{name}"):
        assert client.get(f"{API}/{path}").status_code in (404, 405, 422), path


# --- who may ask ------------------------------------------------------------------------------------------------------


def test_only_who_has_the_token_is_answered(served):
    plain = TestClient(served[0].app, base_url="http://localhost")
    is_problem(plain.get(f"{API}/models"), 401)
    is_problem(plain.get(f"{API}/models", headers={"Authorization": "Bearer wrong"}), 401)
    is_problem(plain.get(f"{API}/models?token={TOKEN}"), 401)  # addresses of the API are no place for it
    assert plain.get("/healthz").status_code == 200
    page = plain.get(f"/runs?token={TOKEN}&a=1", follow_redirects=False)
    assert page.status_code == 303 and page.headers["location"] == "./runs?a=1"
    cookie = page.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    assert plain.get(f"{API}/models").status_code == 200  # by the cookie


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", ""])
def test_other_names_are_no_names_of_the_service(client, host):
    is_problem(client.get(f"{API}/models", headers={"Host": host}), 421)


def test_the_port_of_a_host_does_not_matter(client):
    assert client.get(f"{API}/models", headers={"Host": "127.0.0.1:9999"}).status_code == 200
    assert client.get(f"{API}/models", headers={"Host": "[::1]:9999"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_other_sites_cannot_ask_for_changes(client, headers):
    is_problem(client.post(f"{API}/predict", json={"image": "birds/test/1"}, headers=headers), 403)


def test_own_pages_can(client):
    headers = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
    assert client.post(f"{API}/predict", json={"image": "birds/test/1"}, headers=headers).status_code == 200


def test_pages_are_confined(client):
    for path in (
        "/",
        "/concepts",
        "/concepts/1",
        "/runs",
        "/runs/x",
        "/train",
        "/data",
        "/predictions",
        "/fallacies",
        "/docs",
    ):
        page = client.get(path)
        policy = page.headers["content-security-policy"]
        assert page.status_code == 200 and "default-src 'self'" in policy and "unsafe" not in policy
        assert page.headers["x-content-type-options"] == "nosniff"
        assert (
            "style=" not in page.text
            and "onclick=" not in page.text
            and "http" not in page.text.replace("http-equiv", "")
        )


def test_a_name_of_a_run_is_no_markup(client):
    assert "<script>alert" not in client.get("/runs/%3Cscript%3Ealert(1)%3C%2Fscript%3E").text


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(served):
    """A run of three lines, a picture and a log."""
    root = served[2]
    name = f"run-{time.monotonic_ns()}"
    made = Run.create("classifier", tiny_recipe(), root / name)
    for step in range(1, 4):
        made.log(step, {"train.loss": 3.0 / step, "validation.accuracy": 0.25 * step})
    Image.new("RGB", (8, 8)).save(made.figures / "samples-000002.png")
    (made.path / "log.txt").write_text("one\ntwo\n")
    return made


def test_a_run_is_shown(client, run):
    name = run.path.name
    row = client.get(f"{API}/runs/{name}").json()
    assert (row["kind"], row["state"], row["step"], row["model"]) == ("classifier", "stopped", 3, False)
    assert row["recipe"]["classifier"]["epochs"] == 1
    assert name in [one["run"] for one in client.get(f"{API}/runs").json()]
    assert client.get(f"{API}/runs/latest").json()["run"]
    curves = client.get(f"{API}/runs/{name}/metrics?keys=train.loss&since=2").json()["curves"]
    assert curves == {"train.loss": {"steps": [2, 3], "values": [1.5, 1.0]}}
    best = client.get(f"{API}/runs/{name}/summary").json()["measures"]["validation.accuracy"]
    assert (best["best"], best["best_step"], best["last"]) == (0.75, 3, 0.75)
    assert client.get(f"{API}/runs/{name}/log").text == "one\ntwo\n"
    figures = client.get(f"{API}/runs/{name}/figures").json()
    assert [(one["name"], one["step"]) for one in figures] == [("samples-000002.png", 2)]
    assert row["branch"] is None and row["bounds"] == {} and row["score"] is None
    assert client.get(f"{API}/runs/{name}/figures/samples-000002.png").headers["content-type"] == "image/png"
    is_problem(client.get(f"{API}/runs/{name}/figures/other.png"), 404)


def test_thinned_curves_lose_no_spike():
    from viscoin.serving.runs import thinned

    values = np.random.default_rng(0).normal(size=5000)
    values[[7, 4321]] = 50, -50
    found = thinned(list(range(5000)), values.tolist(), 100)
    assert len(found["steps"]) <= 100 and {7, 4321, 0, 4999} <= set(found["steps"])
    assert found["steps"] == sorted(found["steps"])


def test_events_go_on_where_they_were_cut(served, run):
    from viscoin.serving.runs import Follower

    follower = Follower(Run(run.path))
    first = list(follower.fresh())
    assert [kind for kind, _, _ in first] == ["metrics"] * 3 + ["status"]
    assert list(follower.fresh()) == []
    after_two = Follower(Run(run.path), first[1][1])
    assert [values["step"] for kind, _, values in after_two.fresh() if kind == "metrics"] == [3]
    with run.metrics_path.open("a") as file:
        file.write('{"step": 4, "train.loss": 0.1}\n{"step": 5, "tra')
    assert [values["step"] for kind, _, values in follower.fresh() if kind == "metrics"] == [4]
    run.truncate_metrics(1)
    assert [kind for kind, _, _ in follower.fresh()][:2] == ["rewritten", "metrics"]
    Image.new("RGB", (8, 8)).save(run.figures / "samples-000004.png")
    assert [(kind, values["step"]) for kind, _, values in follower.fresh()] == [("figure", 4)]
    (run.path / "control.jsonl").write_text("no command\n")
    assert list(follower.fresh()) == []  # who asks for the record is told
    run.recipe_path.unlink()
    [(kind, _, values)] = follower.fresh()
    assert (kind, values["state"]) == ("status", "damaged") and "recipe.yaml" in values["reason"]
    shutil.rmtree(run.path)
    assert [kind for kind, _, _ in follower.fresh()] == ["gone"]


def test_events_end_with_the_run(client, run):
    shutil.move(run.path, run.path.with_name("elsewhere"))
    watched = Run.create("classifier", tiny_recipe(), run.path)
    with client.stream("GET", f"{API}/runs/{run.path.name}/events") as answer:
        lines = answer.iter_lines()
        while "status" not in next(lines):
            pass
        shutil.rmtree(watched.path)
        assert "event: gone" in list(lines)


def test_a_run_goes_into_the_trash_unless_something_trains_there(client, run, served):
    name = run.path.name
    with run.lock():
        is_problem(client.delete(f"{API}/runs/{name}"), 409, "trains")
    moved = client.delete(f"{API}/runs/{name}").json()["moved_to"]
    assert (served[2] / moved / "recipe.yaml").is_file() and not run.path.exists()
    assert name not in [one["run"] for one in client.get(f"{API}/runs").json()]


def test_commands_reach_the_inbox_of_what_trains(client, run):
    name = run.path.name
    body = {"command": "set", "values": {"learning_rate": 0.1}}
    is_problem(client.post(f"{API}/runs/{name}/commands", json=body), 409, "nothing trains")
    with run.lock():
        sent = client.post(f"{API}/runs/{name}/commands", json=body)
        assert sent.status_code == 202 and (run.path / "inbox" / f"{sent.json()['id']}.json").is_file()
        is_problem(client.post(f"{API}/runs/{name}/commands", json={"command": "explode"}), 422, "command")
        is_problem(client.post(f"{API}/runs/{name}/commands", json={"command": "note"}), 422, "note")
    waits = client.get(f"{API}/runs/{name}/commands").json()
    assert [(row["command"], row["waiting"]) for row in waits] == [("set", True)]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"kind": "magic"}, "no training of 'magic'"),
        ({"kind": "classifier", "dataset": "/etc"}, "outside of the folder of data"),
        ({"kind": "classifier", "dataset": "../.."}, "outside of the folder of data"),
        ({"kind": "classifier", "name": "../x"}, "no name for a run"),
        ({"kind": "classifier", "settings": {"classifier.epochs": -1}}, "epochs"),
        ({"kind": "classifier", "settings": {"classifier.magic": 1}}, "magic"),
        ({"kind": "classifier", "recipe": "../../x"}, "no recipe"),
        ({"kind": "classifier", "replay": "nothing"}, "no run"),
    ],
)
def test_a_training_that_cannot_be_is_refused_before_it_starts(client, served, body, text):
    before = sorted(served[2].iterdir())
    answer = client.post(f"{API}/jobs", json=body)
    assert answer.status_code in (404, 422), answer.text
    assert text in json.dumps(answer.json()), answer.json()
    assert sorted(served[2].iterdir()) == before


def test_the_service_ends_although_a_thread_does_not(monkeypatch):
    import os
    import signal

    from viscoin.serving import server
    from viscoin.serving.state import Service

    ended, codes = threading.Event(), []
    monkeypatch.setattr(server, "GRACE", 0)
    monkeypatch.setattr(server, "LAST", 0.2)
    monkeypatch.setattr(os, "_exit", lambda code: (codes.append(code), ended.set()))
    one = server._Server(uvicorn.Config(lambda: None), Service(Settings()))
    one.handle_exit(signal.SIGTERM, None)
    one.handle_exit(signal.SIGTERM, None)
    assert ended.wait(10) and one.service.ending.is_set()
    time.sleep(0.5)
    assert codes == [143]


def test_jobs_start_when_their_turn_comes_though_nobody_asks(tmp_path, monkeypatch, caplog):
    from viscoin.serving import state
    from viscoin.serving.jobs import Jobs, Wish

    class Process:
        done = None

        def poll(self):
            return self.done

    first, begun = Process(), []
    monkeypatch.setattr(state, "TURN", 0.05)
    monkeypatch.setattr(
        Jobs, "_start", lambda self, job: begun.append(job.run) or (first if job.run == "a" else Process())
    )
    service = state.Service(Settings([], tmp_path / "runs", "cpu"))
    service.start()
    for name in ("a", "b", "c"):
        service.jobs.add(Wish("classifier", "birds", None, {}, name, None, None))
    time.sleep(0.3)
    assert begun == ["a"]
    first.done = 0
    until = time.monotonic() + 30
    while begun != ["a", "b"] and time.monotonic() < until:
        time.sleep(0.05)
    service.close()
    assert begun == ["a", "b"]
    assert "run c waited for its turn and is not started; by hand: python main.py train classifier" in caplog.text


def test_jobs_wait_for_their_turn(tmp_path, monkeypatch):
    from viscoin.serving.jobs import Jobs, Wish

    class Process:
        ended = False

        def poll(self):
            return 0 if self.ended else None

    begun = []
    monkeypatch.setattr(Jobs, "_start", lambda self, job: begun.append((job, Process())) or begun[-1][1])
    jobs = Jobs(tmp_path, 1, tmp_path)
    for name in ("one", "two"):
        jobs.add(Wish("classifier", "birds", settings={"classifier.epochs": 2}, name=name))
    assert [job.run for job, _ in begun] == ["one"] and [row["run"] for row in jobs.waiting()] == ["two"]
    assert "--set classifier.epochs=2" in begun[0][0].command and "--out" in begun[0][0].command
    begun[0][1].ended = True
    assert jobs.waiting() == [] and [job.run for job, _ in begun] == ["one", "two"]


def test_a_read_only_service_changes_nothing(served):
    settings = Settings([("viscoin", None)], served[2], "cpu", read_only=True)
    client = TestClient(create_app(settings), base_url="http://localhost")  # no model is needed
    for answer in (client.post(f"{API}/jobs", json={"kind": "classifier"}), client.delete(f"{API}/runs/x")):
        is_problem(answer, 403, "read-only")


def test_a_recipe_tells_its_keys(client):
    sections = client.get(f"{API}/recipes/birds").json()["sections"]
    keys = {row["key"]: row for section in sections for row in section["keys"]}
    assert keys["classifier.epochs"]["least"] == 1 and keys["classifier.epochs"]["type"] == "integer"
    assert keys["viscoin.initialisation"]["choices"] == ["random", "channels", "pursuit"]
    is_problem(client.get(f"{API}/recipes/none"), 404)


# --- the whole --------------------------------------------------------------------------------------------------------


def test_while_models_are_loaded_the_service_says_so(tmp_path):
    app = create_app(Settings([("viscoin", tmp_path / "none.safetensors")], tmp_path, "cpu"))
    with TestClient(app, base_url="http://localhost") as client:
        until = time.monotonic() + 60
        while client.get("/readyz").json()["status"] == "loading" and time.monotonic() < until:
            time.sleep(0.05)
        assert client.get("/healthz").status_code == 200
        found = is_problem(client.get(f"{API}/models"), 503, "no model could be loaded")
        assert "none.safetensors" in found["detail"]


def test_the_api_is_the_one_that_is_kept_and_all_of_it_is_documented(client):
    """A change of the API is to be seen in a diff: `python scripts/write_openapi.py` writes the document anew."""
    script = script_of("write_openapi")
    assert script.document() == script.DOCUMENT.read_text(encoding="utf-8"), "run python scripts/write_openapi.py"
    document = client.get("/openapi.json").json()
    assert document == json.loads(script.document())
    page = client.get("/docs").text
    for path, entry in document["paths"].items():
        for operation in entry.values():
            assert operation.get("description"), path
            assert operation["responses"]["4XX"]["content"]["application/problem+json"]["schema"] == {
                "$ref": "#/components/schemas/ProblemBody"
            }
        assert path in page


def test_metrics_are_read_by_prometheus(client):
    from prometheus_client.parser import text_string_to_metric_families

    families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    counted = {sample.labels["route"] for sample in families["viscoin_requests"].samples}
    assert f"{API}/predict" in counted or "/readyz" in counted
    assert {"viscoin_queue_length", "viscoin_batches", "process_resident_memory_bytes"} <= families.keys()


def test_a_large_body_without_a_length_is_cut_off(client):
    def chunks():
        for _ in range(16):
            yield b"0" * (1 << 20)

    answer = client.post(f"{API}/predict", content=chunks(), headers={"Content-Type": "application/json"})
    is_problem(answer, 413)
