"""Recipes: what they hold, what they refuse, and that they come back from YAML unchanged."""

import os

import pytest
import yaml
from pydantic import ValidationError

from viscoin.config import RECIPES, Recipe, load_recipe, override_recipe, parse_recipe, parse_yaml, recipe_names
from viscoin.errors import Refused
from viscoin.runs.run import Run


def refusal(*arguments: object) -> str:
    """The message of the ValueError that `load_recipe` raises."""
    with pytest.raises(ValueError) as caught:
        load_recipe(*arguments)
    assert type(caught.value) in (ValueError, Refused)  # pydantic's and YAML's own errors do not get through
    return str(caught.value)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*")), ids=lambda path: path.name)
def test_every_shipped_recipe_loads(path):
    assert path.suffix == ".yaml"
    assert load_recipe(path.stem) == load_recipe(str(path))


def test_there_are_recipes():
    assert "birds" in recipe_names()
    assert recipe_names() == sorted(path.stem for path in RECIPES.iterdir())


def test_recipe_comes_back_from_yaml(tmp_path):
    recipe = load_recipe("birds", {"viscoin.learning_rate": 1e-5, "dataset.train": 7, "expected": {"accuracy": 0.9}})
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    assert load_recipe(str(tmp_path / "r.yaml")) == recipe != load_recipe("birds")


def test_recipe_cannot_be_changed_in_place():
    with pytest.raises(ValidationError, match="frozen"):
        load_recipe("birds").dataset.resolution = 32  # type: ignore[misc]


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("classifier.epohcs", "epochs"), ("datset", "dataset"), ("gan.r1_gama", "r1_gamma"), ("dataset.sede", "seed")],
)
def test_unknown_key_suggests_the_nearest(key, nearest):
    message = refusal("birds", {key: 1})
    assert repr(key) in message and f"did you mean {nearest!r}?" in message


def test_unknown_key_without_a_near_one_lists_all():
    message = refusal("birds", {"dataset.zzzzzz": 1})
    assert "'dataset.zzzzzz'" in message and "known keys: name, resolution, classes" in message


@pytest.mark.parametrize(
    ("key", "value", "texts"),
    [
        ("classifier.epochs", "three", ["classifier.epochs = 'three'", "integer"]),
        ("classifier.epochs", 2.5, ["classifier.epochs = 2.5", "integer"]),
        ("classifier.epochs", 0, ["classifier.epochs = 0", "greater than or equal to 1"]),
        ("classifier.optimizer", "magic", ["classifier.optimizer = 'magic'", "'adam'", "'adamw'", "'sgd'"]),
        ("viscoin.learning_rate", -1e-3, ["viscoin.learning_rate = -0.001", "greater than 0"]),
        ("viscoin.dropout", 1, ["viscoin.dropout = 1", "less than 1"]),
        ("dataset.skip_bad_files", "maybe", ["dataset.skip_bad_files = 'maybe'", "boolean"]),
        ("dataset.name", None, ["dataset.name = None", "string"]),
        ("viscoin", 3, ["viscoin = 3"]),
        ("seed.x", 3, ["'seed.x'", "'seed' is a value, not a section"]),
    ],
)
def test_wrong_types_and_ranges_are_named(key, value, texts):
    message = refusal("birds", {"seed": 0} | {key: value})
    for text in texts:
        assert text in message


def test_all_problems_are_listed_at_once():
    message = refusal("birds", {"classifier.epochs": 0, "gan.kimgs": 3})
    assert "classifier.epochs = 0" in message and "did you mean 'kimg'?" in message


def test_expected_results_are_those_of_the_dataset_of_the_recipe(tmp_path):
    young = load_recipe("celeba_hq").expected
    assert young and load_recipe("celeba_hq", {"dataset.attribute": "young", "viscoin.steps": 5}).expected == young
    assert load_recipe("celeba_hq", {"dataset.attribute": "Smiling"}).expected == {}
    assert load_recipe("cub", {"dataset.name": "photos"}).expected == {}
    assert override_recipe(load_recipe("cub"), {"dataset.name": "photos"}).expected == {}
    assert load_recipe("cub", {"dataset.name": "photos", "expected": {"classifier.accuracy": 1}}).expected
    file = tmp_path / "mine.yaml"
    file.write_text("base: cub\ndataset:\n  name: photos\n")
    assert load_recipe(str(file)).expected == {}
    file.write_text("base: cub\nclassifier:\n  epochs: 5\n")
    assert load_recipe(str(file)).expected == load_recipe("cub").expected


def test_layers_out_of_order():
    message = refusal("birds", {"viscoin.coarse_layer": 5, "viscoin.mid_layer": 4})
    assert "viscoin.mid_layer (4)" in message and "viscoin.coarse_layer (5)" in message


def test_text_is_read_as_the_type_of_its_key():
    texts = {
        "viscoin.steps": "1e3",
        "viscoin.learning_rate": "1e-4",
        "viscoin.dropout": "0.25",
        "classifier.horizontal_flip": "false",
        "dataset.train": "null",
        "dataset.test": "12",
        "dataset.name": "2024",
    }
    recipe = load_recipe("birds", texts)
    assert (recipe.viscoin.steps, recipe.viscoin.learning_rate, recipe.viscoin.dropout) == (1000, 1e-4, 0.25)
    assert type(recipe.viscoin.steps) is int
    assert recipe.classifier.horizontal_flip is False
    assert (recipe.dataset.train, recipe.dataset.test, recipe.dataset.name) == (None, 12, "2024")


@pytest.mark.parametrize("name", ["2024-01-31", "[scans", "photos: new", "@home", "#1", "on", "1.5"])
def test_any_folder_name_is_taken_as_it_is(name):
    assert load_recipe("birds", {"dataset.name": name}).dataset.name == name


def test_override_leaves_the_original_alone():
    recipe = load_recipe("birds")
    changed = override_recipe(recipe, {"gan.kimg": 7})
    assert changed.gan.kimg == 7 != recipe.gan.kimg
    assert changed.classifier == recipe.classifier


def test_sections_may_be_left_empty(tmp_path):
    (tmp_path / "r.yaml").write_text("dataset:\ngan:\n  kimg: 3\n")
    assert load_recipe(str(tmp_path / "r.yaml"), {"dataset.seed": 4}) == parse_recipe(
        {"gan": {"kimg": 3}, "dataset": {"seed": 4}}, "x"
    )


@pytest.mark.parametrize("text", ["", "null", "# nothing\n", "{}", "gan:\n"])
def test_an_empty_file_is_no_recipe(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    assert "r.yaml is empty; write what to change" in refusal(str(tmp_path / "r.yaml"))


def test_what_is_no_file_is_called_by_its_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    assert "run: a folder, not a file; give a YAML file" in refusal("run")
    (tmp_path / "run" / "recipe.yaml").write_text("base: birds")
    assert "give run/recipe.yaml" in refusal("run")
    os.mkfifo("pipe.yaml")
    assert "pipe.yaml: a named pipe, not a file" in refusal("pipe.yaml")
    (tmp_path / "birds").mkdir()
    assert load_recipe("birds").dataset.name == "birds"


def test_errors_tell_settings_from_the_file(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("gan: {kimg: -1}")
    message = refusal(str(file), {"classifier.epochs": "0", "gan.epohcs": "3", "dataset.resolution": 5})
    of_file, *others = message.split("; ")
    assert of_file.startswith(f"recipe {file}: gan.kimg = '-1'")
    assert [text.partition(" ")[0] for text in others] == ["dataset.resolution", "`settings`:", "`settings`:"]
    assert "`settings`: unknown key 'gan.epohcs'" in message
    assert refusal("birds", {"gan.augment": "fixed"}).startswith("`settings`: gan.augment = fixed needs")
    with pytest.raises(Refused, match=r"^`settings`: seed = 'abc'"):
        override_recipe(load_recipe("birds"), {"seed": "abc"})


def test_numbers_that_no_library_can_hold_are_refused():
    assert load_recipe("birds", {"seed": 2**32 - 1}).seed == 2**32 - 1
    for key in ("seed", "dataset.seed"):
        assert f"{key} = '4294967296': input should be less than or equal to 4294967295" in refusal(
            "birds", {key: str(2**32)}
        )
    for key in ("dataset.train", "classifier.epochs", "gan.batch_size", "dataset.seed"):
        assert f"{key} = '{9 * 10**30}'" in refusal("birds", {key: str(9 * 10**30)})


def test_unknown_key_of_another_section_names_that():
    assert "did you mean 'classifier.padding'?" in refusal("birds", {"padding": 3})
    assert "did you mean 'viscoin.steps'?" in refusal("birds", {"gan.steps": 3})
    message = refusal("birds", {"learning_rate": 3})
    assert "'classifier.learning_rate' or 'gan.learning_rate' or 'viscoin.learning_rate'" in message


def test_no_number_is_infinite_or_none_at_all():
    for value in ("inf", "nan", float("inf"), float("nan")):
        assert f"gan.r1_gamma = {value!r}: input should be a finite number" in refusal("birds", {"gan.r1_gamma": value})


def test_a_file_is_read_as_the_command_line_is(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "dataset: {name: 2024-01-31, train: ~, test: 012}\n"
        "gan: {augment: off, kimg: 1e2}\n"
        "classifier: {horizontal_flip: no, epochs: 1e1}\n"
    )  # a date, an octal number and two booleans, by YAML 1.1
    recipe = load_recipe(str(path))
    assert (recipe.dataset.name, recipe.dataset.train, recipe.dataset.test) == ("2024-01-31", None, 12)
    assert (recipe.gan.augment, recipe.gan.kimg) == ("off", 100)
    assert (recipe.classifier.horizontal_flip, recipe.classifier.epochs) == (False, 10)


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("classifier: {epochs: true}", ["classifier.epochs = 'true'", "integer"]),
        ("classifier: {epochs: 2.5}", ["classifier.epochs = '2.5'", "integer"]),
        ("classifier: {epochs: 0}", ["classifier.epochs = '0'", "greater than or equal to 1"]),
        ("classifier: {epochs: [3]}", ["classifier.epochs = ['3']", "integer"]),
        ("classifier: {epochs: }", ["classifier.epochs = None", "integer"]),
        ("classifier: {optimizer: sdg}", ["classifier.optimizer = 'sdg'", "'adam', 'adamw', 'radam' or 'sgd'"]),
        ("base: birds\nclassifier: 3", ["classifier = '3'"]),
        ("base: birds\nclassifier: {epohcs: 3}", ["'classifier.epohcs'", "did you mean 'epochs'?"]),
        ("clasifier: {epochs: 3}", ["'clasifier'", "did you mean 'classifier'?"]),
        ("expected: {accuracy: high}", ["expected.accuracy = 'high'", "number"]),
        ("seed: 1\ngan: {kimg: 1}\nseed: 2", ["line 3", "'seed' stands twice"]),
        ("gan:\n  kimg: 1\n  kimg: 2", ["line 3", "'kimg' stands twice"]),
        ("base: brids", ["base = 'brids'", "did you mean 'birds'?"]),
        ("base: [birds]", ["base = ['birds']", "no shipped recipe"]),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, text, texts):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    message = refusal(str(path))
    for part in (str(path), *texts):
        assert part in message


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert f"{path} is not valid YAML" in refusal(str(path))


def test_unknown_recipe_suggests_the_nearest():
    assert "did you mean 'birds'?" in refusal("bird")


def test_recipe_of_a_run_is_a_recipe(tmp_path):
    recipe = load_recipe("birds", {"gan.kimg": 7, "dataset.name": "photos"})
    run = Run.create("gan", recipe, tmp_path / "run")
    assert load_recipe(str(run.recipe_path)) == recipe


def test_numbers_in_scientific_notation_in_a_file(tmp_path):
    (tmp_path / "r.yaml").write_text("classifier: {learning_rate: 1e-4}")  # text, by YAML 1.1
    assert yaml.safe_load((tmp_path / "r.yaml").read_text())["classifier"]["learning_rate"] == "1e-4"
    assert load_recipe(str(tmp_path / "r.yaml")).classifier.learning_rate == 1e-4


def test_files_that_are_no_recipes(tmp_path):
    assert "'dogs'" in (message := refusal("dogs")) and "birds" in message
    path = tmp_path / "bad.yaml"
    path.write_text("a: [1, 2")
    assert str(path) in (message := refusal(str(path))) and "not valid YAML" in message
    path.write_text("- 1\n- 2\n")
    assert str(path) in (message := refusal(str(path))) and "sections" in message and "['1', '2']" in message


def test_defaults_have_the_type_of_their_key():
    recipe = Recipe()  # else a recipe would change by going through its own file: 5 -> 5.0
    assert yaml.safe_load(recipe.to_yaml()) == recipe.model_dump()
    assert recipe.to_yaml() == parse_recipe(yaml.safe_load(recipe.to_yaml()), "x").to_yaml()


def test_recipe_starts_from_its_base(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: birds\nviscoin:\n  n_concepts: 8\n")
    birds, mine = load_recipe("birds"), load_recipe(str(path))
    assert mine.viscoin == birds.viscoin.model_copy(update={"n_concepts": 8})
    assert (mine.gan, mine.classifier, mine.dataset) == (birds.gan, birds.classifier, birds.dataset)


def test_base_must_be_a_shipped_recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: {path}\n")
    with pytest.raises(ValueError, match=r"is no shipped recipe; the shipped recipes are .*birds"):
        load_recipe(str(path))


# --- YAML that takes more than it is long ------------------------------------------------------------------------

DOUBLED = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (DOUBLED, "holds more than 20000 values"),
        ("a: &a [*a]", "holds more than 20000 values"),
        ("a: " + "[" * 2000, "nested too deeply"),
        ("a: " + "x" * 1_000_001, "has 1000004 characters"),
        ("? [a, b]\n: c", "unhashable key"),
    ],
)
def test_yaml_that_would_take_all_time_or_memory(tmp_path, text, reason):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"recipe\.yaml is not valid YAML: .*{reason}") as caught:
        load_recipe(str(path))
    assert "\n" not in str(caught.value)
    with pytest.raises(yaml.YAMLError, match=reason):
        parse_yaml(text)


@pytest.mark.parametrize("text", ["a: !!int x", "a: !!bool x", "a: !!timestamp x", "a: 2024-99-99", "a: !!binary x"])
def test_yaml_values_that_are_not_of_their_type(text):
    with pytest.raises(yaml.YAMLError):
        parse_yaml(text)


def test_a_few_aliases_are_fine(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("gan: {z_dim: &size 32, w_dim: *size}\n")
    assert load_recipe(str(path)).gan.w_dim == 32
