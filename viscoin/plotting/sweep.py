"""Moving pictures of an amplification: GIF and MP4 of a smooth sweep over the multiplier."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from viscoin.analysis.amplification import AmplificationResult
from viscoin.errors import Refused, reason_of
from viscoin.files import atomic_path
from viscoin.plotting.style import DARK, HEAT

RATE = 20  # frames a second
STEPS = 40  # frames from the smallest to the largest multiplier
SIDE = 192  # of a picture, pixels; larger ones keep their size
GAP, TEXT = 8, 18  # pixels


def sweep_factors(largest: float, steps: int = STEPS) -> list[float]:
    """Multipliers from 0 to the largest one, evenly."""
    return np.linspace(0, largest, steps).tolist()


def sweep_frames(result: AmplificationResult) -> list[np.ndarray]:
    """Frames (H, W, 3) uint8, sides even: up through all multipliers and down again, to be repeated for ever.

    A column for each image: original, generated image, change map; f and g are the probabilities of the class that g
    predicts for the original.
    """
    rising = [_frame(result, position) for position in range(len(result.factors))]
    return rising + rising[-2:0:-1]


def save_gif(path: Path, frames: Sequence[np.ndarray], rate: int = RATE) -> Path:
    """Write an animation that repeats for ever.

    Raises:
        ValueError: the file's name does not end in .gif, or it cannot be written.
    """
    check_suffix(path, "gif", ".gif")
    _make_folder(path, "gif")
    sample = np.concatenate(frames[:: max(1, len(frames) // 4)])
    palette = Image.fromarray(sample).quantize(256)  # one for all frames, so that still places do not flicker
    still = Image.Dither.NONE
    pictures = [Image.fromarray(frame).quantize(palette=palette, dither=still) for frame in frames]
    try:
        with atomic_path(path) as partial:
            pictures[0].save(
                partial, format="GIF", save_all=True, append_images=pictures[1:], duration=1000 // rate, loop=0
            )
    except OSError as error:
        raise Refused("gif", path, f"cannot be written ({reason_of(error)})", "choose another path") from error
    return path


def save_mp4(path: Path, frames: Sequence[np.ndarray], rate: int = RATE) -> Path:
    """Write an MPEG-4 video.

    Raises:
        ValueError: the file's name does not end in .mp4, or it cannot be written.
    """
    import cv2

    check_suffix(path, "mp4", ".mp4")
    _make_folder(path, "mp4")
    partial = path.with_name(f".{path.stem}.partial.mp4")  # OpenCV chooses the container by the name
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(partial), cv2.VideoWriter.fourcc(*"mp4v"), rate, (width, height))
    try:
        if not writer.isOpened():
            raise Refused("mp4", path, "OpenCV cannot write a video there", "choose another path, or `gif`")
        for frame in frames:
            writer.write(frame[..., ::-1])
        writer.release()
        partial.replace(path)
    finally:
        writer.release()
        partial.unlink(missing_ok=True)
    return path


def check_suffix(path: Path, parameter: str, suffix: str) -> None:
    """Raise Refused unless the file's name ends so."""
    if path.suffix.lower() != suffix:
        raise Refused(parameter, path, f"give a file name that ends in {suffix}")


def _make_folder(path: Path, parameter: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(parameter, path, f"cannot be written ({reason_of(error)})", "choose another path") from error


def _frame(result: AmplificationResult, position: int) -> np.ndarray:
    count, side = len(result.images), max(SIDE, result.originals.shape[1])
    width = count * (side + GAP) + GAP
    height = 3 * (side + GAP) + 3 * TEXT + GAP
    canvas = Image.new("RGB", (width + width % 2, height + height % 2), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.truetype(findfont("DejaVu Sans"), TEXT - 5)
    draw.text((GAP, 2), f"λ = {result.factors[position]:.2f}", fill=DARK, font=font)
    _progress(draw, canvas.width, result.factors[position] / max(result.factors.max(), 1e-9))
    brightest = max(float(result.changes.max()), 1e-6)
    for i in range(count):
        x, y = GAP + i * (side + GAP), TEXT + GAP
        heat = mpl.colormaps[HEAT](result.changes[i, position] / brightest, bytes=True)[..., :3]
        for picture in (result.originals[i], result.images[i, position], np.asarray(heat)):
            canvas.paste(_enlarged(picture, side), (x, y))
            y += side + GAP
        texts = (
            f"f {result.f_probability[i, position]:.2f}   g {result.g_probability[i, position]:.2f}",
            _concepts(result.concepts(i)),
        )
        for text in texts:
            draw.text((x, y), text, fill=DARK, font=font)
            y += TEXT
    return np.asarray(canvas)


def _progress(draw: ImageDraw.ImageDraw, width: int, share: float) -> None:
    left, right = 90, width - GAP
    draw.rectangle((left, 7, right, 13), fill="#D9D9D9")
    draw.rectangle((left, 7, left + round(share * (right - left)), 13), fill="#0072B2")


def _concepts(concepts: np.ndarray, most: int = 4) -> str:
    return "concepts " + ", ".join(map(str, concepts[:most])) + (" …" if len(concepts) > most else "")


def _enlarged(pixels: np.ndarray, side: int) -> Image.Image:
    smooth = Image.Resampling.NEAREST if pixels.shape[0] <= 128 else Image.Resampling.LANCZOS
    return Image.fromarray(pixels).resize((side, side), smooth)
