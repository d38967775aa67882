"""Images of more than 8 bits, and of every kind of pixels: never black in silence, one brightness for a dataset."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from viscoin.config import DatasetConfig
from viscoin.datasets import load_dataset, reading
from viscoin.datasets.depth import Extent, described, joined, white_of
from viscoin.datasets.prepare import prepare_dataset
from viscoin.datasets.reading import BadImage, read_rgb, stored_extent
from viscoin.inference.loading import read_pictures

ROOT = Path(__file__).parents[1]
RAMP = np.linspace(0, 1, 32)[None].repeat(24, 0)
COLOURS = np.stack([RAMP, RAMP[:, ::-1], RAMP / 2], -1)  # blue, green, red, as OpenCV has them


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def png(width: int, height: int, depth: int, kind: int, rows: np.ndarray, more: bytes = b"") -> bytes:
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more
    return start + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def corners(path: Path) -> list[list[int]]:
    """The pixels at the left and right of the first row."""
    pixels = np.asarray(read_rgb(path)).astype(int)
    assert pixels.shape == (24, 32, 3)
    return pixels[0, [0, -1]].tolist()


GREY = {
    "16 bits.png": (RAMP * 65535).astype(np.uint16),
    "12 of 16.png": (RAMP * 4095).astype(np.uint16),
    "12 of 16.tif": (RAMP * 4095).astype(np.uint16),
    "10 of 16.tif": (RAMP * 1023).astype(np.uint16),
    "8 of 16.png": (RAMP * 255).astype(np.uint16),
    "16 signed.tif": (RAMP * 32767).astype(np.int16),
    "8 signed.tif": (RAMP * 127).astype(np.int8),
    "8 of 32.tif": (RAMP * 255).astype(np.int32),
    "16 of 32.tif": (RAMP * 65535).astype(np.int32),
    "0 to 1.tif": RAMP.astype(np.float32),
    "0 to 255.tif": (RAMP * 255).astype(np.float32),
    "0 to 65535.tif": (RAMP * 65535).astype(np.float32),
}


@pytest.mark.parametrize("name", GREY)
def test_white_is_white_whatever_the_type(here, name):
    cv2.imwrite(name, GREY[name])
    assert corners(Path(name)) == [[0, 0, 0], [255, 255, 255]]
    middle = np.asarray(read_rgb(Path(name)))[0, 16]
    assert np.abs(middle.astype(float) - 255 * RAMP[0, 16]).max() < 2


def test_32_bits_without_sign_do_not_wrap(here):
    values = (RAMP * (2**32 - 1)).astype(np.uint32)
    Image.fromarray(values.view(np.int32)).save("a.tif")
    signed, unsigned = (struct.pack("<HHIHH", 339, 3, 1, sample, 0) for sample in (2, 1))
    content = Path("a.tif").read_bytes()
    assert content.count(signed) == 1
    Path("a.tif").write_bytes(content.replace(signed, unsigned))
    assert corners(Path("a.tif")) == [[0, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("white", [65535, 4095])
def test_colours_of_16_bits(here, name, white):
    cv2.imwrite(name, (COLOURS * white).astype(np.uint16))
    assert corners(Path(name)) == [[0, 255, 0], [127, 0, 255]]
    cv2.imwrite("alpha.png", np.dstack([COLOURS, RAMP > 0]).astype(np.float64).__mul__(white).astype(np.uint16))
    assert corners(Path("alpha.png")) == [[255, 255, 255], [127, 0, 255]]


def test_16_bits_that_are_transparent(here):
    values = (RAMP * 65535).astype(">u2")
    Path("key.png").write_bytes(png(32, 24, 16, 0, values, chunk(b"tRNS", b"\0\0")))
    assert corners(Path("key.png")) == [[255, 255, 255], [255, 255, 255]]
    both = np.stack([values, np.full_like(values, 65535)], -1)
    both[0, -1] = (0, 0)
    Path("alpha.png").write_bytes(png(32, 24, 16, 4, both))
    assert corners(Path("alpha.png")) == [[0, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_grey_of_few_bits_may_be_transparent(here, depth):
    per_byte, most = 8 // depth, 2**depth - 1
    values = np.zeros((24, 32), np.uint8)
    values[:, 16:] = clear = most // 2
    packed = sum(values[:, i::per_byte].astype(int) << (depth * (per_byte - 1 - i)) for i in range(per_byte))
    Path("a.png").write_bytes(png(32, 24, depth, 0, packed.astype(np.uint8), chunk(b"tRNS", struct.pack(">H", clear))))
    assert corners(Path("a.png"))[1] == [255] * 3
    assert corners(Path("a.png"))[0] == ([0] * 3 if clear else [255] * 3)


def test_what_a_tiff_declares_counts(here):
    dark = Image.fromarray((RAMP * 900).astype(np.uint16))
    dark.save("declared.tif", tiffinfo={281: 4095})
    assert corners(Path("declared.tif"))[1] == [56] * 3
    Image.fromarray((RAMP * 65535).astype(np.uint16)).save("inverse.tif", tiffinfo={262: 0})  # white is zero
    assert corners(Path("inverse.tif")) == [[255, 255, 255], [0, 0, 0]]


def test_turned_images_of_16_bits(here):
    values = (COLOURS * 65535).astype(np.uint16)
    exif = Image.Exif()
    exif[274] = 6  # to be turned clockwise
    cv2.imwrite("a.png", values)
    content = Path("a.png").read_bytes()
    Path("a.png").write_bytes(content[:33] + chunk(b"eXIf", exif.tobytes()[6:]) + content[33:])
    Image.fromarray((RAMP * 65535).astype(np.uint16)).save("a.tif", tiffinfo={274: 6})
    for name in ("a.png", "a.tif"):
        pixels = np.asarray(read_rgb(Path(name)))
        assert pixels.shape == (32, 24, 3), name
        assert pixels[0, :, 2].max() < pixels[-1, :, 2].min(), name  # dark above


@pytest.mark.parametrize(
    "values",
    [
        (RAMP * 4000 - 1024).astype(np.int16),
        (RAMP * 255 - 128).astype(np.int8),
        (RAMP * 2 - 1).astype(np.float32),
        np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32),
        np.where(RAMP > 0.5, np.inf, RAMP).astype(np.float32),
    ],
)
def test_what_cannot_be_decided_is_refused(here, values):
    cv2.imwrite("a.tif", values)
    with pytest.raises(BadImage, match=r"without sign$"):
        read_rgb(Path("a.tif"))
    assert stored_extent(Path("a.tif")) is None


def test_resampling_may_overshoot(here):
    cv2.imwrite("a.tif", (RAMP * 1.05 - 0.02).astype(np.float32))
    assert corners(Path("a.tif")) == [[0, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "RGBX", "LAB", "HSV"])
@pytest.mark.parametrize("ending", ["png", "tif", "jpg", "webp", "gif", "bmp"])
def test_every_mode_is_shown_or_refused(here, mode, ending):
    picture = Image.new("RGB", (24, 24), (200, 120, 40))
    try:
        picture.convert(mode).save(f"a.{ending}")
    except (OSError, ValueError):
        pytest.skip("there are no such files")
    shown = np.asarray(read_rgb(Path(f"a.{ending}"))).mean((0, 1))
    colour = (200, 120, 40) if mode not in ("1", "L", "LA") else (135,) * 3
    assert np.abs(shown - colour).max() < 30


def test_palettes_may_be_transparent(here):
    picture = Image.new("P", (24, 24), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    picture.save("a.png", transparency=1)
    picture.save("b.png", transparency=bytes([255, 0]))
    picture.save("c.gif", transparency=1)
    for name in ("a.png", "b.png", "c.gif"):
        assert np.asarray(read_rgb(Path(name))).min() == 255


def test_white_is_one_value_for_all_images_of_a_dataset(here, caplog):
    """Scans of a camera of 12 bits: those that happen to be dark stay dark."""
    for name, top in (("bright", 4000), ("dark", 400)):
        Path("scans", name).mkdir(parents=True)
        for i in range(6):
            values = np.full((24, 24), top - i, np.uint16)
            values[:, :12] = 0
            cv2.imwrite(f"scans/{name}/{i}.png", values)
    config = DatasetConfig(name="scans", resolution=16)
    for _ in range(2):  # the second time from the cache
        images = load_dataset("scans", "train", config)
        tops = {name: images.pixels[images.labels == i].max() for i, name in enumerate(images.class_names)}
        assert 245 < tops["bright"] < 255 and 23 < tops["dark"] < 27
    assert (
        "12 images of scans: the largest of the 16-bit values is 4000, so that 4095 (12 bits) is taken" in caplog.text
    )
    caplog.clear()
    prepare_dataset("scans", Path("out"), 16)
    pixels = [np.asarray(Image.open(path)).max() for path in Path("out").rglob("*.png")]
    assert sorted(top > 100 for top in pixels) == [False] * 6 + [True] * 6
    assert not [record for record in caplog.records if "out" in record.message]


def test_one_image_alone_is_reported(here, caplog):
    cv2.imwrite("a.png", GREY["12 of 16.png"])
    read_rgb(Path("a.png"))
    assert "a.png: the largest of the 16-bit values is 4095, so that 4095 (12 bits) is taken for white" in caplog.text
    caplog.clear()
    cv2.imwrite("b.png", GREY["16 bits.png"])
    read_rgb(Path("b.png"))
    assert not caplog.records


def test_images_to_look_at_are_of_one_brightness(here, caplog):
    for name, top in (("dark", 400), ("bright", 4000)):
        cv2.imwrite(f"{name}.png", np.full((24, 24), top, np.uint16))
    pictures = read_pictures([Path("dark.png"), Path("bright.png").read_bytes()], 8)
    assert np.abs(pictures.images.mean((1, 2, 3)).numpy() - (np.array([400, 4000]) / 4095 * 2 - 1)).max() < 0.01
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert [message[:24] for message in warned] == ["2 of the given images: t"]


def test_files_of_several_pictures_are_reported(here, caplog):
    pages = [Image.new("RGB", (32, 24), colour) for colour in ("red", "blue")]
    Path("data").mkdir()
    for name in ("a.tif", "b.gif", "c.webp", "d.png"):
        pages[0].save(f"data/{name}", save_all=True, append_images=pages[1:])
        pages[0].save(f"data/one{name}")
    pages[0].save("data/e.jpg")
    prepare_dataset("data", Path("out"), 16)
    (said,) = [record.message for record in caplog.records if "several" in record.message]
    assert said.startswith("4 images of data are files of several pictures, of which the first is used (first: ")
    read_pictures([Path("data/a.tif"), Path("data/e.jpg")], 16)
    assert "1 of the given images are files of several" in caplog.text


def test_black_images_are_reported(here, caplog):
    for name, value in (("cat", 1), ("dog", 200)):
        Path("data", name).mkdir(parents=True)
        for i in range(5):
            Image.new("L", (24, 24), value + i).save(f"data/{name}/{i}.png")
    load_dataset("data", "train", DatasetConfig(name="data", resolution=16))
    assert "data: 5 of 10 images are black: no pixel is brighter than 15 of 255 (first: data/cat/" in caplog.text


@pytest.mark.parametrize(
    ("kind", "limit", "top", "white"),
    [
        ("16-bit", 65535, 65535, 65535),
        ("16-bit", 65535, 16384, 65535),
        ("16-bit", 65535, 16383, 16383),
        ("16-bit", 65535, 1, 255),
        ("16-bit signed", 32767, 20000, 32767),
        ("32-bit", 2**32 - 1, 2**31, 2**32 - 1),
        ("32-bit", 2**32 - 1, 70000, 2**18 - 1),
        ("floating-point", np.inf, 0, 1),
        ("floating-point", np.inf, 1.04, 1),
        ("floating-point", np.inf, 1.2, 255),
        ("floating-point", np.inf, 256.5, 1023),
    ],
)
def test_the_rule(kind, limit, top, white):
    found = Extent(kind, limit, top)
    assert white_of(found) == white
    assert (described(found, "x") is None) == (white == limit)


def test_kinds_are_joined():
    found = joined([Extent("a", 9, 1), Extent("b", 9, 2), Extent("a", 9, 5, 3)])
    assert found == [Extent("a", 9, 5, 4), Extent("b", 9, 2, 1)]


# --- large images -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGBA", "RGB", "L", "P", "LA", "CMYK"])
def test_large_images_are_reduced_before_they_are_converted(here, monkeypatch, mode):
    draw = np.random.default_rng(0)
    small = Image.fromarray(draw.integers(0, 255, (12, 20, 4), dtype=np.uint8), "RGBA")
    picture = small.resize((600, 360), Image.Resampling.NEAREST)
    picture = picture.convert("RGB").convert(mode) if mode in ("P", "CMYK") else picture.convert(mode)
    picture.save("a.tif")
    exact = read_rgb(Path("a.tif"), 100)
    assert exact.size == (600, 360)
    monkeypatch.setattr(reading, "LARGE", 600 * 40)
    reduced = read_rgb(Path("a.tif"), 100)
    assert reduced.size == (200, 120)
    assert np.abs(np.asarray(reduced).astype(int) - np.asarray(exact.reduce(3)).astype(int)).max() <= 1
    whole = read_rgb(Path("a.tif"))
    assert (np.asarray(whole) == np.asarray(exact)).all()


def test_bounds_name_size_and_remedy(here, monkeypatch):
    Image.new("L", (40, 30)).save("a.png")
    monkeypatch.setattr(reading, "MOST_PIXELS", 1000)
    bound = r"Image size \(40x30 = 1200 pixels\) exceeds limit of 1000 pixels; make it smaller"
    with pytest.raises(BadImage, match=bound):
        read_rgb(Path("a.png"))
    monkeypatch.setattr(reading, "MOST_PIXELS", 2000)
    read_rgb(Path("a.png"))
    cv2.imwrite("b.png", np.zeros((30, 40, 3), np.uint16))
    with pytest.raises(BadImage, match="limit of 1000 pixels"):  # twice the memory
        read_rgb(Path("b.png"))


def test_bombs_and_absurd_headers_have_a_reason(here):
    row = np.zeros((8, 8), np.uint8)
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**27)))
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(2**27)))
    files = {
        "text.png": png(8, 8, 8, 0, row, text),
        "profile.png": png(8, 8, 8, 0, row, profile),
        "sides.png": png(2**31 - 1, 2**31 - 1, 8, 0, row),
        "wide.png": png(2**31 - 1, 1, 8, 0, row),
        "none.png": png(0, 0, 8, 0, row),
        "a.bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**30, 2**30, 1, 24, *[0] * 6),
        "a.gif": b"GIF89a" + struct.pack("<HHBBBcHHHHB", *[65535] * 2, 0, 0, 0, b",", 0, 0, *[65535] * 2, 0),
        "a.tif": b"II*\0\x08\0\0\0\x02\0" + struct.pack("<HHIIHHII", 256, 4, 1, 2**31, 257, 4, 1, 2**31),
    }  # fmt: skip
    for name, content in files.items():
        Path(name).write_bytes(content)
        with pytest.raises(BadImage, match=r"\w{4}"):
            read_rgb(Path(name))


MEASURED = """
import sys, threading
from pathlib import Path
from viscoin.datasets.reading import read_square

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

start = peak()
threads = [threading.Thread(target=read_square, args=(Path("a.png"), 64)) for _ in range(int(sys.argv[1]))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(peak() - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux tells the largest memory of a process")
@pytest.mark.parametrize(("count", "times"), [(1, 1.5), (3, 2.2)])
def test_memory_of_a_large_image_is_that_of_its_pixels(here, count, times):
    """Before, five times that for each; and threads waited for nobody."""
    side = 5000
    Image.new("RGBA", (side, side), (9, 9, 9, 99)).save("a.png", compress_level=1)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", MEASURED, str(count)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < times * 4 * side**2


def test_only_one_huge_image_is_read_at_a_time(here, monkeypatch, caplog):
    Image.new("L", (40, 30), 200).save("a.png")
    held = []
    upright = reading._upright_rgb

    def watched(*arguments):
        held.append(reading._one_huge._value)
        return upright(*arguments)

    monkeypatch.setattr(reading, "_upright_rgb", watched)
    read_rgb(Path("a.png"))
    monkeypatch.setattr(reading, "HUGE", 1000)
    read_rgb(Path("a.png"))
    assert held == [1, 0] and reading._one_huge._value == 1


def test_bad_images_to_look_at_are_skipped_where_that_is_asked_for(here, caplog):
    Image.new("RGB", (24, 24), "red").save("good.png")
    Path("empty.png").touch()
    os.mkfifo("pipe.png")
    given = [Path(name) for name in ("empty.png", "good.png", "pipe.png", "gone.png")]
    pictures = read_pictures(given, 8, skip_bad_files=True)
    assert pictures.names == ["good"] and len(pictures.images) == 1
    assert sum("left out" in record.message for record in caplog.records) == 3
    with pytest.raises(ValueError, match="empty"):
        read_pictures(given, 8)
    with pytest.raises(ValueError, match="gone"):
        read_pictures(given[-1:], 8, skip_bad_files=True)
