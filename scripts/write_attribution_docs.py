"""Write the table of methods in docs/attribution.md from `METHODS`: python scripts/write_attribution_docs.py"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from viscoin.attribution import METHODS  # noqa: E402
from viscoin.attribution.methods import described  # noqa: E402

PAGE = ROOT / "docs" / "attribution.md"
START, END = "<!-- methods: written by scripts/write_attribution_docs.py -->", "<!-- end of methods -->"
NEEDS = {
    "maps": "feature maps or tokens",
    "pooling": "a linear layer on the mean of maps",
    "attention": "attention of a plain ViT",
    "relu": "no other nonlinearity than ReLU",
    "training": "its own training",
}


def table() -> str:
    """One row for each method, those from outside left out."""
    lines = [
        "| method | family | signed | passes an image | needs | options | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, method in METHODS.items():
        if method.family == "plugin":
            continue
        needs = "; ".join(NEEDS[need] for need in method.needs) or "nothing"
        if method.extra:
            needs += f"; extra `{method.extra}`"
        cells = [f"`{name}`", method.family, "yes" if method.signed else "no", method.cost, needs]
        lines.append(f"| {' | '.join([*cells, described(name), method.reference])} |")
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with the table of today."""
    before, rest = text.split(START)
    return f"{before}{START}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
