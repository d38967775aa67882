"""Attribution methods of others: from files and packages, the documented example, and those that go wrong."""

import logging
import re
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from viscoin.attribution import METHODS, attribute, plugins
from viscoin.attribution.plugins import load_plugins
from viscoin.errors import Refused

PAGE = Path(__file__).parents[1] / "docs" / "plugins.md"
SIZE = 16


class Corner(nn.Module):
    """Two classes: how bright the upper left quarter is, and how bright the whole image."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([images[..., : SIZE // 2, : SIZE // 2].mean((1, 2, 3)), images.mean((1, 2, 3))], 1)


@pytest.fixture(autouse=True)
def methods() -> Iterator[None]:
    """What tests enter is gone after them."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.5


def file(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def example() -> str:
    (text,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return text


def test_the_documented_example_is_right_as_it_stands(tmp_path: Path, images: Tensor) -> None:
    code = [line for line in example().splitlines() if line.strip()]
    assert len(code) <= 15
    assert load_plugins([file(tmp_path, example(), "my_method.py")])[-1] == "squares"
    assert METHODS["squares"].family == "plugin" and METHODS["squares"].reference.startswith("Hide one square")
    found = attribute(Corner(), images, "squares", [0, 0, 0])
    assert found.native.shape == (3, 8, 8) and found.maps.shape == (3, SIZE, SIZE)
    squares = images.mean(1).unflatten(2, (8, 2)).unflatten(1, (8, 2)).mean((2, 4))
    assert torch.allclose(found.native[:, :4, :4], squares[:, :4, :4] / 16, atol=1e-6)  # 16 squares in the quarter
    assert found.native[:, 4:].abs().max() < 1e-6 and found.native[:, :, 4:].abs().max() < 1e-6


def test_what_is_run_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = file(tmp_path, example())
    with caplog.at_level(logging.INFO, "viscoin"):
        load_plugins([path])
    assert f"running the code of {path}" in caplog.text and "squares" in caplog.text


def test_only_functions_of_the_file_with_these_parameters_count(tmp_path: Path) -> None:
    text = """
from statistics import mean
def _helper(images, targets, classifier): ...
def other(images, labels): ...
def one(images, targets, classifier): return images.mean(1)
def two(images, targets, classifier, strength=1): return -images.mean(1)
two.signed = True
"""
    assert load_plugins([file(tmp_path, text)])[-2:] == ["one", "two"]
    assert (METHODS["one"].signed, METHODS["two"].signed) == (False, True)


def test_below_zero_is_cut_off_unless_it_is_signed(tmp_path: Path, images: Tensor) -> None:
    text = "def {}(images, targets, classifier): return -images.mean(1)\n"
    load_plugins([file(tmp_path, text.format("cut") + text.format("kept") + "kept.signed = True")])
    assert not attribute(Corner(), images, "cut").maps.any()
    assert torch.equal(attribute(Corner(), images, "kept").maps, -images.mean(1))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise KeyError('heads')", "KeyError: 'heads' (line 2)"),
        ("return images", r"gave \(3, 3, 16, 16\), not maps \(3, h, w\)"),
        ("return images.mean(1)[:2]", r"gave \(2, 16, 16\)"),
        ("return images[:, 0, :0]", r"gave \(3, 0, 16\)"),
        ("return None", "NoneType"),
        ("return images.mean(1) / 0 * 0", "no numbers"),
    ],
)
def test_a_plugin_that_goes_wrong_is_named(tmp_path: Path, images: Tensor, body: str, said: str) -> None:
    load_plugins([file(tmp_path, f"def broken(images, targets, classifier):\n    {body}\n")])
    with pytest.raises(Refused, match=said if "\\" in said else re.escape(said)) as error:
        attribute(Corner(), images, "broken")
    assert (error.value.parameter, error.value.value) == ("method", "broken")


def test_a_stop_by_hand_is_not_caught(tmp_path: Path, images: Tensor) -> None:
    load_plugins([file(tmp_path, "def slow(images, targets, classifier): raise KeyboardInterrupt\n")])
    with pytest.raises(KeyboardInterrupt):
        attribute(Corner(), images, "slow")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "there is no such file"),
        ("x = 1\n", "no function that begins with images, targets, classifier"),
        ("def broken(:\n", "SyntaxError"),
        ("import torch\n\n1 / 0\n", "ZeroDivisionError: division by zero (line 3)"),
        ("def gradcam(images, targets, classifier): ...\n", "there is a method gradcam already"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "mine.py" if text is None else file(tmp_path, text)
    with pytest.raises(Refused, match=re.escape(said)) as error:
        load_plugins([path])
    assert error.value.parameter == "plugin"


def test_a_file_may_be_loaded_again(tmp_path: Path, images: Tensor) -> None:
    for factor in (1, 2):
        text = f"def mine(images, targets, classifier): return {factor} * images.mean(1)\n"
        load_plugins([file(tmp_path, text)])
        assert torch.equal(attribute(Corner(), images, "mine").maps, factor * images.mean(1))


def test_packages_enter_methods_and_a_broken_one_is_left_out(
    tmp_path: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file(tmp_path, "def bright(images, targets, classifier): return images.mean(1)\n", "their_package.py")
    monkeypatch.syspath_prepend(tmp_path)
    group = "viscoin.attributions"
    points = [EntryPoint(name, f"their_package:{what}", group) for name, what in (("theirs", "bright"), ("no", "gone"))]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    with caplog.at_level(logging.INFO, "viscoin"):
        assert load_plugins() == ["theirs"]
    assert torch.equal(attribute(Corner(), images, "theirs").maps, images.mean(1))
    assert "running the code of package their_package" in caplog.text
    assert "attribution method no of package" in caplog.text and "left out: AttributeError" in caplog.text
