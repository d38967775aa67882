"""Write scikit-learn's handwritten digits (real scans, 8x8 px, grey) as PNG files, one folder per digit.

An example of a user's own folder of images; see docs/your-own-images.md. The scans are those of Alpaydin and Kaynak,
"Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.

    python scripts/write_digits.py digits
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def write_digits(folder: Path, per_class: int | None = None) -> int:
    """Write `folder/<digit>/NNNN.png`, 8-bit grey; NNNN is the number of the scan in scikit-learn's order.

    Args:
        per_class: only the first so many scans of each digit; None writes all 1797.

    Returns:
        The number of files written.
    """
    scans, digits = load_digits(return_X_y=True)
    pixels = np.round(scans.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)  # scikit-learn counts from 0 to 16
    written = 0
    for digit in range(10):
        (folder / str(digit)).mkdir(parents=True, exist_ok=True)
        for number in np.flatnonzero(digits == digit)[:per_class]:
            Image.fromarray(pixels[number]).save(folder / str(digit) / f"{number:04d}.png")
            written += 1
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description="Write scikit-learn's handwritten digits as PNG files.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("digits"), help="where to (default: digits)")
    parser.add_argument("--per-class", type=int, metavar="N", help="only the first N scans of each digit")
    options = parser.parse_args()
    print(f"{write_digits(options.folder, options.per_class)} images in {options.folder}")


if __name__ == "__main__":
    main()
