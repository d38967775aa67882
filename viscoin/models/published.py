"""Published StyleGAN2-ADA networks: known by name, downloaded once, checked at every use."""

import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from viscoin.datasets.cache import cache_folder, explained
from viscoin.errors import Refused, reason_of
from viscoin.files import atomic_path

LICENCE = (
    "weights by NVIDIA under the NVIDIA Source Code License for StyleGAN2-ADA: research and evaluation only, "
    "no commercial use; the images they were trained on have terms of their own"
)
CHUNK = 2**20
TIMEOUT = 30  # seconds without a byte

_ROOT = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained"
_SOURCES = f"{_ROOT}/transfer-learning-source-nets"
_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """One network pickle on the web.

    Attributes:
        megabytes: size of the download, roughly.
        training: what it was trained on.
        sha256: of the file, where independent users of the official address report the same; else None, and the one
            of the first download counts.
        classes: names of the classes of a conditional network, in order.
    """

    address: str
    resolution: int
    megabytes: int
    training: str
    sha256: str | None = None
    classes: tuple[str, ...] = ()


PUBLISHED: dict[str, Published] = {
    "ffhq256": Published(f"{_SOURCES}/ffhq-res256-mirror-paper256-noaug.pkl", 256, 295, "faces (FFHQ)"),
    "celebahq256": Published(
        f"{_SOURCES}/celebahq-res256-mirror-paper256-kimg100000-ada-target0.5.pkl", 256, 295, "faces (CelebA-HQ)"
    ),
    "lsundog256": Published(f"{_SOURCES}/lsundog-res256-paper256-kimg100000-noaug.pkl", 256, 295, "dogs (LSUN)"),
    "ffhq512": Published(f"{_SOURCES}/ffhq-res512-mirror-stylegan2-noaug.pkl", 512, 364, "faces (FFHQ)"),
    "ffhq1024": Published(f"{_SOURCES}/ffhq-res1024-mirror-stylegan2-noaug.pkl", 1024, 382, "faces (FFHQ)"),
    "ffhq": Published(
        f"{_ROOT}/ffhq.pkl",
        1024,
        382,
        "faces (FFHQ)",
        "a205a346e86a9ddaae702e118097d014b7b8bd719491396a162cca438f2f524c",
    ),
    "metfaces": Published(f"{_ROOT}/metfaces.pkl", 1024, 382, "faces in art (MetFaces), from FFHQ"),
    "afhqcat": Published(f"{_ROOT}/afhqcat.pkl", 512, 364, "cats (AFHQ)"),
    "afhqdog": Published(f"{_ROOT}/afhqdog.pkl", 512, 364, "dogs (AFHQ)"),
    "afhqwild": Published(f"{_ROOT}/afhqwild.pkl", 512, 364, "wild animals (AFHQ)"),
    "brecahad": Published(f"{_ROOT}/brecahad.pkl", 512, 364, "breast cancer histology (BreCaHAD)"),
    "cifar10": Published(
        f"{_ROOT}/cifar10.pkl",
        32,
        246,
        "ten classes of small images (CIFAR-10), conditional",
        "f8952c74e23da2186d147ad871c48780bd59500ee37c301201081ee8e0cb32f1",
        tuple(_CIFAR10.split()),
    ),
}


def find_published(name: str) -> str | None:
    """The key in `PUBLISHED` of a name, file name or address; None for others."""
    for key, network in PUBLISHED.items():
        file = network.address.rpartition("/")[2]
        if name in (key, network.address, file, file.removesuffix(".pkl")):
            return key
    return None


def is_address(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


def fetch(name: str, sha256: str | None = None) -> Path:
    """The file of a published network or of any web address, downloaded at the first use into the cache folder.

    An interrupted download resumes where it stopped. The file is checked at each use against `sha256`, else against
    the known checksum, else against that of the first download, stored beside it.

    Args:
        name: a key of `PUBLISHED`, the file's name, or an http(s) address.

    Raises:
        ValueError: unknown name, no network, no such file there, or another checksum; says where to put the file by
            hand.
    """
    key = find_published(name)
    if key is None and not is_address(name):
        raise ValueError(f"no published network is called {name!r}; known are {', '.join(PUBLISHED)}")
    _check_digits(sha256)
    network = PUBLISHED[key] if key else None
    address = network.address if network else name
    path = _place(address, published=network is not None)
    known = sha256 or (network.sha256 if network else None)
    if not path.is_file():
        if network:
            logger.info("%s: about %d MB from %s", key, network.megabytes, address)
            logger.info("licence: %s", LICENCE)
        _download(address, path, known)
    _verify(path, known)
    return path


def check_sha256(path: Path, expected: str | None = None) -> str:
    """The SHA-256 of a file; Refused if another one was expected."""
    _check_digits(expected)
    found = _checksum(path)
    if expected is not None and found != expected.lower():
        raise Refused("sha256", expected, f"{path} has the SHA-256 {found}")
    return found


def _check_digits(sha256: str | None) -> None:
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise Refused("sha256", sha256, "a SHA-256 checksum has 64 hexadecimal digits")


def _place(address: str, published: bool) -> Path:
    parts = urlsplit(address)
    file = re.sub(r"[^\w.-]", "_", parts.path.rpartition("/")[2]) or "network.pkl"
    if not published:  # another address may end in the same name
        file = f"{hashlib.sha256(address.encode()).hexdigest()[:8]}-{file}"
    return cache_folder() / "published" / file


def _verify(path: Path, known: str | None) -> None:
    """Compare with the known checksum or the recorded one; record it where there is none."""
    record = path.with_name(f"{path.name}.sha256")
    found = _checksum(path)
    expected = known or (record.read_text().split()[0] if record.is_file() else None)
    if expected is None:
        logger.info("no published checksum is known for %s; recorded its SHA-256 %s for later uses", path.name, found)
    elif found != expected.lower():
        raise ValueError(
            f"{path} has the SHA-256 {found}, not {expected}; remove it to download it again"
            + ("" if known else f", or remove {record.name} beside it if you changed it on purpose")
        )
    if not record.is_file() or known:
        with atomic_path(record) as partial:
            partial.write_text(f"{found}  {path.name}\n")


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- download


def _download(address: str, path: Path, known: str | None) -> None:
    """Download to a partial file beside `path`, and move it there when it is whole and has the known checksum."""
    partial = path.with_name(f"{path.name}.partial")
    with _explained(address, path, partial):
        with explained():
            path.parent.mkdir(parents=True, exist_ok=True)
        _complete(address, partial)
        with partial.open("rb") as file:
            start = file.read(1)
    found = _checksum(partial)
    if start != b"\x80" or (known is not None and found != known.lower()):
        partial.unlink()
        if start != b"\x80":
            raise ValueError(f"{address} is no network pickle (perhaps a web page); check the address")
        raise Refused(
            None, None, f"{address} has the SHA-256 {found}, not {known}; the download was removed",
            f"try again, or pass `sha256` {found} if you trust this file",
        )  # fmt: skip
    partial.replace(path)


def _complete(address: str, partial: Path) -> None:
    """Fetch what is missing of the partial file; from the start if the file on the server has changed meanwhile."""
    version = partial.with_name(f"{partial.name}.version")  # the server's mark of the file that the part belongs to
    start = partial.stat().st_size if partial.is_file() and version.is_file() else 0
    with _open(address, start, version.read_text() if start else "") as response:
        begin, total = _extent(response)
        if begin not in (0, start):
            raise HTTPException(f"the server sent bytes from {begin} on instead of {start}")
        mark = response.headers.get("ETag") or response.headers.get("Last-Modified") or "W/"
        version.unlink(missing_ok=True)
        with partial.open("r+b" if begin else "wb") as file:
            if not mark.startswith("W/"):  # weak marks do not vouch for every byte
                version.write_text(mark)
            file.seek(begin)
            _copy(response, file, begin, total, partial.name.removesuffix(".partial"))
    size = partial.stat().st_size
    if total is not None and size != total:
        raise HTTPException(f"stopped after {size / 1e6:.1f} of {total / 1e6:.1f} MB")
    version.unlink(missing_ok=True)


def _open(address: str, start: int, mark: str) -> HTTPResponse:
    headers = {"User-Agent": "viscoin", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": mark}
    try:
        return urlopen(Request(address, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if start and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # nothing is missing, or all is other
            return _open(address, 0, "")
        raise


def _extent(response: HTTPResponse) -> tuple[int, int | None]:
    """First byte of the answer, and bytes of the whole file where the server says."""
    if response.status == HTTPStatus.PARTIAL_CONTENT:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if found is None:
            raise HTTPException("the server sent a part without saying which")
        return int(found[1]), None if found[2] == "*" else int(found[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _copy(response: HTTPResponse, file: BinaryIO, begin: int, total: int | None, title: str) -> None:
    bar = tqdm(initial=begin, total=total, desc=title, unit="B", unit_scale=True, leave=False, disable=None)
    with bar:
        while chunk := response.read(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))


@contextmanager
def _explained(address: str, path: Path, partial: Path) -> Iterator[None]:
    """Faults of network and disk as one line that says what to do."""
    try:
        yield
    except (OSError, HTTPException) as error:
        kept = partial.is_file() and partial.stat().st_size > 0
        reason = error.reason if type(error) is URLError and error.reason else reason_of(error)
        raise ValueError(
            f"cannot download {address} ({reason}); {'try again to resume the download, or ' if kept else ''}"
            f"fetch it by other means and put it at {path}"
        ) from error
