"""Draw the pictures of README and docs anew from the shipped models: runs the commands that the texts name.

    python scripts/draw_documents.py [NAME ...]

All of them take about ten minutes on two cores; what the commands print stands in `runs/documents/NAME/output.txt`.
"""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PICTURES, RESULTS = ROOT / "docs" / "images", ROOT / "runs" / "documents"
MODEL = "viscoin/assets/birds/viscoin.safetensors"
# What is run, and which of its figures becomes which picture.
COMMANDS: dict[str, tuple[str, dict[str, str]]] = {
    "test": (
        "test viscoin",
        {
            "truth-tests": "truth-tests",
            "truth-scenes": "truth-scenes",
            "truth-attributes": "attributes",
            "reconstructions": "reconstructions",
            "dose-response": "dose-response",
            "surgery": "surgery-tests",
        },
    ),
    "concepts": ("concepts", {"class-concept-importance": "class-concept-importance"}),
    "amplify": ("amplify --concept-top-k 5", {"amplification": "amplification"}),
    "dose": ("amplify --image-indices 54 --concept-indices 69,23 --one-by-one --no-control", {}),
    "swap": ("amplify --image-indices 54 --swap 26:80", {}),
    "surgery": ("amplify --image-indices 7,54 --swap 26:80", {"surgery": "surgery"}),
    "heatmaps": ("concept-heatmaps", {"concept-heatmaps": "concept-heatmaps"}),
    "attribution": (
        "attribute --method gradcam,integrated-gradients,occlusion",
        {"attribution": "attribution"},
    ),
    "randomise": ("attribute --demo randomise", {"randomise-curves": "randomise-curves"}),
    "scorecard": ("scorecard --scenes 40", {"scorecard": "scorecard"}),
}
# Figures of these commands, one below the other.
STACKED = {"readme": ("dose/amplification", "swap/surgery")}


def main() -> None:
    unknown = set(sys.argv[1:]) - set(COMMANDS)
    if unknown:
        raise SystemExit(f"{', '.join(sorted(unknown))}: unknown; choose some of {', '.join(COMMANDS)}")
    for name in sys.argv[1:] or COMMANDS:
        command, figures = COMMANDS[name]
        folder = RESULTS / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        print(f"python main.py {command}", flush=True)
        option = "--viscoin" if command.startswith("attribute") else "--checkpoints"
        arguments = [sys.executable, "main.py", *command.split(), option, MODEL, "--out", str(folder)]
        output = subprocess.run(arguments, check=True, capture_output=True, text=True, cwd=ROOT).stdout
        (folder / "output.txt").write_text(output)
        for figure, picture in figures.items():
            shutil.copy(folder / f"{figure}.png", PICTURES / f"{picture}.png")
    for picture, names in STACKED.items():
        files = [RESULTS / f"{name}.png" for name in names]
        if all(file.is_file() for file in files):
            stack(files).save(PICTURES / f"{picture}.png", optimize=True)


def stack(files: Sequence[Path]) -> Image.Image:
    """Pictures of one width, one below the other."""
    parts = [Image.open(file).convert("RGB") for file in files]
    whole = Image.new("RGB", (parts[0].width, sum(part.height for part in parts)), "white")
    tops = accumulate((part.height for part in parts), initial=0)
    for part, top in zip(parts, tops, strict=False):
        whole.paste(part, (0, top))
    return whole


if __name__ == "__main__":
    main()
