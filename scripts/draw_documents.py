"""Draw the pictures of README and docs anew from the shipped models: runs the commands that the texts name.

    python scripts/draw_documents.py [NAME ...]

All of them take about ten minutes on two cores; what the commands print stands in `runs/documents/NAME/output.txt`.
"""

import shutil
import subprocess
import sys
from pathlib import Path

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
    "readme": (
        "amplify --image-indices 54 --concept-indices 65,75 --one-by-one --no-control --multipliers 0,0.5,1",
        {"amplification": "readme"},
    ),
    "surgery": ("amplify --image-indices 54,7 --swap 81:5", {"surgery": "surgery"}),
    "heatmaps": ("concept-heatmaps", {"concept-heatmaps": "concept-heatmaps"}),
    "attribution": (
        "attribute --method gradcam,integrated-gradients,occlusion",
        {"attribution": "attribution"},
    ),
    "randomise": ("attribute --demo randomise", {"randomise-curves": "randomise-curves"}),
}


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


if __name__ == "__main__":
    main()
