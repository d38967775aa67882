"""Messages call the program as it was started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from viscoin.program import program_name

ROOT = Path(__file__).parents[1]


def said(command: list[str | Path], folder: Path) -> str:
    """Its usage, from a folder where the packages are found only by the path of modules."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_usage_in_all_ways_to_start(tmp_path: Path) -> None:
    script = tmp_path / "bin" / "viscoin"  # as installers write it
    script.parent.mkdir()
    script.write_text("import sys\nfrom viscoin.cli import main\nsys.exit(main())\n")
    main = ROOT / "main.py"
    assert "Usage: viscoin [" in said([sys.executable, script, "--help"], tmp_path)
    assert "Usage: python -m viscoin [" in said([sys.executable, "-m", "viscoin", "--help"], tmp_path)
    assert "Usage: python main.py [" in said([sys.executable, "main.py", "--help"], ROOT)
    assert f"Usage: python {main} [" in said([sys.executable, os.path.relpath(main, tmp_path), "--help"], tmp_path)


def test_an_unrelated_folder_of_that_name_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "viscoin").mkdir()
    (tmp_path / "viscoin" / "__init__.py").write_text("raise ImportError('unrelated')")
    assert "amplify" in said([sys.executable, ROOT / "main.py", "--help"], tmp_path)
    assert "amplify" in said([sys.executable, "-P", "-m", "viscoin", "--help"], tmp_path)


@pytest.mark.parametrize("started", ["", "-c", "/usr/lib/python3/site-packages/pytest/__main__.py", "my_script.py"])
def test_in_python_it_is_the_installed_command(started: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [started])
    assert program_name() == "viscoin"


def test_another_main_py_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "main.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    assert program_name() == "viscoin"
