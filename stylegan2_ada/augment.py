"""Adaptive discriminator augmentation (ADA; Karras et al. 2020, arXiv 2006.06676): transforms, presets, controller."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylegan2_ada.affine import SYM6, affine_resample, reflect_pad
from stylegan2_ada.ops import setup_filter

BLIT = {"xflip": 1, "rotate90": 1, "xint": 1}
GEOM = {"scale": 1, "rotate": 1, "aniso": 1, "xfrac": 1}
COLOR = {"brightness": 1, "contrast": 1, "lumaflip": 1, "hue": 1, "saturation": 1}
FILTER, NOISE, CUTOUT = {"imgfilter": 1}, {"noise": 1}, {"cutout": 1}

# The sets of Fig. 4: which transforms take part, with relative probability 1. Names grow by initials, from left.
PRESETS: dict[str, dict[str, float]] = {
    "blit": {**BLIT},
    "geom": {**GEOM},
    "color": {**COLOR},
    "filter": {**FILTER},
    "noise": {**NOISE},
    "cutout": {**CUTOUT},
    "bg": {**BLIT, **GEOM},
    "bgc": {**BLIT, **GEOM, **COLOR},
    "bgcf": {**BLIT, **GEOM, **COLOR, **FILTER},
    "bgcfn": {**BLIT, **GEOM, **COLOR, **FILTER, **NOISE},
    "bgcfnc": {**BLIT, **GEOM, **COLOR, **FILTER, **NOISE, **CUTOUT},
}

# Expected power of natural images in the four octaves, which fall as 1 / frequency (Appendix B).
BAND_POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)


@dataclass(frozen=True)
class Augmentations:
    """Probabilities and strengths of the transforms, under the names of the public keywords. The strengths are the
    paper's (Appendix B); "octaves" are powers of two: 0.2 octaves is a factor of 2 ** 0.2.

    Raises:
        ValueError: a probability outside [0, 1], or a strength that is negative or no number.
    """

    # Probabilities, each multiplied by the overall `p`; 0 leaves the transform out.
    xflip: float = 0  # left and right exchanged, or not
    rotate90: float = 0  # 0, 90, 180 or 270 degrees
    xint: float = 0  # translation by whole pixels
    scale: float = 0  # both axes by the same factor
    rotate: float = 0  # any angle, before or after `aniso` or both
    aniso: float = 0  # x by a factor and y by its inverse
    xfrac: float = 0  # translation by fractions of a pixel
    brightness: float = 0  # a constant added
    contrast: float = 0  # a factor on the pixels
    lumaflip: float = 0  # light and dark exchanged with the hue kept, or not
    hue: float = 0  # rotation about the grey axis
    saturation: float = 0  # a factor on the distance from the grey axis
    imgfilter: float = 0  # each octave of spatial frequency amplified or damped
    noise: float = 0  # normal noise on each pixel and channel
    cutout: float = 0  # a rectangle set to 0

    # Strengths.
    xint_max: float = 0.125  # largest translation, in widths and heights
    scale_std: float = 0.2  # octaves
    rotate_max: float = 1  # largest angle, in half turns
    aniso_std: float = 0.2  # octaves
    xfrac_std: float = 0.125  # widths and heights
    brightness_std: float = 0.2  # of the range [-1, 1] of images
    contrast_std: float = 0.5  # octaves
    hue_max: float = 1  # largest angle, in half turns
    saturation_std: float = 1  # octaves
    imgfilter_bands: Sequence[float] = (1, 1, 1, 1)  # relative probability per octave, from coarse to fine
    imgfilter_std: float = 1  # octaves of amplification
    noise_std: float = 0.1  # the noise's own standard deviation is half-normal with this scale
    cutout_size: float = 0.5  # sides of the rectangle, in widths and heights

    def __post_init__(self) -> None:
        if isinstance(self.imgfilter_bands, (str, int, float)) or len(self.imgfilter_bands) != len(BAND_POWER):
            raise ValueError(f"imgfilter_bands is {self.imgfilter_bands!r}; give four relative probabilities")
        shares = {*PRESETS["bgcfnc"], "cutout_size"}
        for field in fields(self):
            value = getattr(self, field.name)
            is_bands = field.name == "imgfilter_bands"
            most = 1 if is_bands or field.name in shares else math.inf
            for number in value if is_bands else [value]:
                if not isinstance(number, (int, float)) or not 0 <= number <= most or number == math.inf:
                    allowed = "between 0 and 1" if most == 1 else "0 or more"
                    raise ValueError(f"{field.name} is {value!r}; it must be {allowed}")


class AugmentPipe(nn.Module):
    """Random transforms of real and generated images before the discriminator sees them (ADA paper, Algorithm 1).

    Order: pixel blitting and geometry, composed into one resampling; colour, composed into one matrix; filter; noise;
    cutout. Each transform is sampled per image with its own probability times `p`. A batch is computed whole, whichever
    images take part, so that shapes, and with them the compiled graph, never depend on chance; images that do not take
    part come out unchanged, bit by bit.

    Args:
        **keywords: fields of `Augmentations`, such as xflip=1 or scale_std=0.3. Transforms not named are left out.

    Attributes:
        p: scalar buffer, overall factor on the probabilities: 1 at first. Kept by the caller: constant, or set to what
            `AugmentController.update` returns.

    Raises:
        ValueError: an unknown keyword or a value out of range.
    """

    p: Tensor
    taps: Tensor
    bands: Tensor

    def __init__(self, **keywords: float | Sequence[float]) -> None:
        super().__init__()
        known = [field.name for field in fields(Augmentations)]
        unknown = sorted(set(keywords) - set(known))
        if unknown:
            raise ValueError(f"unknown augmentation keywords: {', '.join(unknown)}; there are {', '.join(known)}")
        self.options = Augmentations(**keywords)  # type: ignore[arg-type]
        self.register_buffer("p", torch.ones([]))
        self.register_buffer("taps", setup_filter(SYM6), persistent=False)
        self.register_buffer("bands", octave_filters(), persistent=False)

    def forward(self, images: Tensor, debug_percentile: float | None = None) -> Tensor:
        """Augment. Random numbers come from PyTorch's global generator of the images' device.

        Args:
            images: (B, C, H, W), floating point, in [-1, 1]; colour takes C = 3, or C = 1, which has no hue and no
                saturation to change. Half precision is computed in float32.
            debug_percentile: every strength is replaced by this percentile q, 0 < q < 1, of its distribution (of a
                normal one, by erfinv(2 q - 1) standard deviations), and images are rotated once, not twice. Whether a
                transform happens, and the noise of single pixels, stay random. None samples all.

        Returns:
            (B, C, H, W) in the dtype of the images, any values; differentiable twice.

        Raises:
            ValueError: wrong shape or dtype, or a percentile out of range.
        """
        self._check(images, debug_percentile)
        # p starts at 0 in most trainings. It is read only where that neither waits for a GPU nor breaks the graph.
        if self.p.device.type == "cpu" and not torch.compiler.is_compiling() and self.p == 0:
            return images
        with torch.autocast(images.device.type, enabled=False):
            x = images.to(torch.promote_types(images.dtype, torch.float32))
            draws = Draws(x, debug_percentile)
            for stage in (self._geometry, self._color, self._filter, self._noise, self._cutout):
                x = stage(x, draws)
            return x.to(images.dtype)

    def extra_repr(self) -> str:
        changed = {f.name: getattr(self.options, f.name) for f in fields(Augmentations)}
        return ", ".join(f"{f.name}={changed[f.name]}" for f in fields(Augmentations) if changed[f.name] != f.default)

    def _check(self, images: Tensor, percentile: float | None) -> None:
        if images.ndim != 4 or min(images.shape[2:]) < 2 or not images.is_floating_point():
            raise ValueError(
                f"images are {images.dtype} of shape {tuple(images.shape)}; floating point (B, C, H, W) is needed, "
                "of 2 pixels or more along each side"
            )
        if images.shape[1] not in (1, 3) and self._any_of(COLOR):
            raise ValueError(f"images have {images.shape[1]} channels; colour transforms need 3, or 1 for grey")
        if percentile is not None and not 0 < percentile < 1:
            raise ValueError(f"debug_percentile is {percentile}; it lies between 0 and 1")

    def _any_of(self, *groups: Mapping[str, float]) -> bool:
        return any(getattr(self.options, name) > 0 for group in groups for name in group)

    def _geometry(self, x: Tensor, draws: "Draws") -> Tensor:
        """Blitting and geometry as one map. The inverse of G = ... T2 T1 is T1^-1 T2^-1 ..., in order of sampling."""
        o, p, (height, width) = self.options, self.p, x.shape[2:]
        if not self._any_of(BLIT, GEOM):
            return x
        sign = 1 - 2 * draws.integer(o.xflip * p, 2)
        quarter_turns = draws.integer(o.rotate90 * p, 4)
        blit_x, blit_y = draws.uniform(o.xint * p, 2) * o.xint_max
        scale = torch.exp2(draws.normal(o.scale * p) * o.scale_std)
        aniso = torch.exp2(draws.normal(o.aniso * p) * o.aniso_std)
        # Rotating before and after with this probability rotates at all with the wanted one.
        either = 1 - (1 - o.rotate * p).clamp(min=0).sqrt()
        before = draws.uniform(either) * (math.pi * o.rotate_max)
        after = draws.uniform(either) * (math.pi * o.rotate_max)
        move_x, move_y = draws.normal(o.xfrac * p, 2) * o.xfrac_std
        inverses = [
            scaling(sign, torch.ones_like(sign)),
            rotation(quarter_turns * (math.pi / 2)),
            translation(-(blit_x * width).round(), -(blit_y * height).round()),
            scaling(1 / scale, 1 / scale),
            rotation(before),
            scaling(1 / aniso, aniso),
            rotation(after if draws.percentile is None else torch.zeros_like(after)),
            translation(-move_x * width, -move_y * height),
        ]
        inverse = functools.reduce(product, inverses)
        moved = (inverse != torch.eye(3, device=x.device)).flatten(1).any(1)
        return torch.where(moved[:, None, None, None], affine_resample(x, inverse, self.taps), x)

    def _color(self, x: Tensor, draws: "Draws") -> Tensor:
        """Colour: out = C (r, g, b, 1).

        With the grey axis v, C = contrast * (luma * v v^T + saturation * R(hue) * (I - v v^T)), applied to x +
        brightness. All its parts are symmetric in the channels, so C is circulant: one factor for a channel itself, one
        for the next and one for the previous. A grey image stays on the axis.
        """
        o, p = self.options, self.p
        if not self._any_of(COLOR):
            return x
        brightness = draws.normal(o.brightness * p) * o.brightness_std
        contrast = torch.exp2(draws.normal(o.contrast * p) * o.contrast_std)
        luma = 1 - 2 * draws.integer(o.lumaflip * p, 2)
        hue = draws.uniform(o.hue * p) * (math.pi * o.hue_max)
        saturation = torch.exp2(draws.normal(o.saturation * p) * o.saturation_std)
        offset = per_image(contrast * luma * brightness)
        if x.shape[1] == 1:
            return x * per_image(contrast * luma) + offset
        along, across = saturation * hue.cos(), saturation * hue.sin() / math.sqrt(3)
        grey = (luma - along) / 3
        own, following, previous = contrast * (along + grey), contrast * (grey - across), contrast * (grey + across)
        turned = per_image(following) * x.roll(-1, 1) + per_image(previous) * x.roll(1, 1)
        return per_image(own) * x + turned + offset

    def _filter(self, x: Tensor, draws: "Draws") -> Tensor:
        """Amplify each octave at random and rescale to the expected power."""
        o, p = self.options, self.p
        if not self._any_of(FILTER):
            return x
        b, c, h, w = x.shape
        gains = [torch.exp2(draws.normal(o.imgfilter * share * p) * o.imgfilter_std) for share in o.imgfilter_bands]
        powers = [1 + power * (gain.square() - 1) for power, gain in zip(BAND_POWER, gains, strict=True)]
        gain = torch.stack(gains, 1) / functools.reduce(torch.mul, powers).sqrt()[:, None]
        taps = (gain[:, :, None] * self.bands).sum(1).repeat_interleave(c, 0)[:, None, None]
        margin = taps.shape[-1] // 2
        y = reflect_pad(x, margin, margin, margin, margin).reshape(1, b * c, h + 2 * margin, w + 2 * margin)
        y = F.conv2d(F.conv2d(y, taps, groups=b * c), taps.mT, groups=b * c).view(x.shape)
        return torch.where(per_image((gain != 1).any(1)), y, x)

    def _noise(self, x: Tensor, draws: "Draws") -> Tensor:
        """Add normal noise whose size is half-normal."""
        if not self._any_of(NOISE):
            return x
        size = draws.half_normal(self.options.noise * self.p) * self.options.noise_std
        return x + per_image(size) * torch.randn_like(x)

    def _cutout(self, x: Tensor, draws: "Draws") -> Tensor:
        """Set a rectangle, its centre anywhere in the image, to 0."""
        if not self._any_of(CUTOUT):
            return x
        reach = draws.happens(self.options.cutout * self.p) * self.options.cutout_size  # to both sides, in half images
        centres = draws.uniform(1, 2)
        outside = [
            ((2 * torch.arange(n, device=x.device) + 1) / n - 1 - centre[:, None]).abs() >= reach[:, None]
            for n, centre in zip(x.shape[:1:-1], centres, strict=True)
        ]
        return torch.where((outside[0][:, None] | outside[1][:, :, None])[:, None], x, 0)


@dataclass(frozen=True)
class Draws:
    """The random numbers of one batch, each 0 in the images that its transform passes by.

    Shapes are (B,), or (n, B) for n numbers that an image takes or leaves together.
    """

    images: Tensor
    percentile: float | None = None

    def happens(self, probability: float | Tensor) -> Tensor:
        """1 with this probability, else 0; never replaced by a percentile."""
        return (self._rand() < probability).to(self.images.dtype)

    def uniform(self, probability: float | Tensor, *n: int) -> Tensor:
        """From [-1, 1)."""
        u = self._rand(*n) if self.percentile is None else self._full(self.percentile, *n)
        return (2 * u - 1) * self.happens(probability)

    def integer(self, probability: float | Tensor, end: int) -> Tensor:
        """From 0, 1, ... end - 1."""
        u = self._rand() if self.percentile is None else self._full(self.percentile)
        return (u * end).floor() * self.happens(probability)

    def normal(self, probability: float | Tensor, *n: int) -> Tensor:
        """With standard deviation 1."""
        z = self._randn(*n) if self.percentile is None else self._full(2 * self.percentile - 1, *n).erfinv()
        return z * self.happens(probability)

    def half_normal(self, probability: float | Tensor) -> Tensor:
        """The size of normal samples with standard deviation 1."""
        z = self._randn().abs() if self.percentile is None else self._full(self.percentile).erfinv()
        return z * self.happens(probability)

    def _rand(self, *n: int) -> Tensor:
        return torch.rand(*n, len(self.images), dtype=self.images.dtype, device=self.images.device)

    def _randn(self, *n: int) -> Tensor:
        return torch.randn(*n, len(self.images), dtype=self.images.dtype, device=self.images.device)

    def _full(self, value: float, *n: int) -> Tensor:
        return self.images.new_full((*n, len(self.images)), value)


def augment_pipe(preset: str) -> AugmentPipe:
    """The pipe of a preset, with the paper's strengths.

    Raises:
        ValueError: no such preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"there is no augmentation preset {preset!r}; choose one of {', '.join(PRESETS)}")
    return AugmentPipe(**PRESETS[preset])


class AugmentController:
    """Keeps the overfitting heuristic r_t = E[sign(D(real))] at its target by moving p (ADA paper, Sec. 3.2, Eq. 1).

    Args:
        target: wanted r_t; 0 is no overfitting, 1 is full overfitting.
        ada_kimg: thousands of images in which p changes by 1 at most.
        interval: steps between two changes.
        p: first probability.

    Attributes:
        p: probability, at least 0, without an upper limit, as published; probabilities above 1 act like 1.
        r_t: the heuristic at the last move; NaN before.

    Raises:
        ValueError: target outside [-1, 1], or another argument out of range.
    """

    def __init__(self, target: float = 0.6, ada_kimg: float = 500, interval: int = 4, p: float = 0) -> None:
        if not -1 <= target <= 1:
            raise ValueError(f"target is {target}; r_t lies in [-1, 1]")
        if not ada_kimg > 0 or interval < 1 or not p >= 0:
            raise ValueError(f"ada_kimg is {ada_kimg}, interval {interval}, p {p}; they must be > 0, >= 1 and >= 0")
        self.target, self.ada_kimg, self.interval = target, ada_kimg, interval
        self.p, self.r_t = float(p), math.nan
        self._signs: float | Tensor = 0.0  # summed over images
        self._images, self._steps = 0, 0

    def update(self, real_sign_mean: float | Tensor, images: int) -> float:
        """Count one step, and move p if `interval` of them have been counted.

        Args:
            real_sign_mean: mean of sign(D(x)) over the (augmented) real images of the step, over all processes. A
                tensor stays on its device until p changes.
            images: how many real images that were, over all processes.

        Returns:
            p after this step.

        Raises:
            ValueError: no images.
        """
        if images < 1:
            raise ValueError(f"images is {images}; a step shows at least one")
        mean = real_sign_mean.detach() if isinstance(real_sign_mean, Tensor) else real_sign_mean
        self._signs = self._signs + mean * images
        self._images += images
        self._steps += 1
        if self._steps == self.interval:
            self.r_t = float(self._signs) / self._images
            direction = (self.r_t > self.target) - (self.r_t < self.target)
            self.p = max(self.p + direction * self._images / (self.ada_kimg * 1000), 0.0)
            self._signs, self._images, self._steps = 0.0, 0, 0
        return self.p

    def state_dict(self) -> dict[str, float | int]:
        """What `load_state_dict` needs to resume exactly, the steps since the last change included; plain numbers."""
        return {
            "p": self.p,
            "r_t": self.r_t,
            "signs": float(self._signs),
            "images": self._images,
            "steps": self._steps,
        }

    def load_state_dict(self, state: Mapping[str, float | int]) -> None:
        """Take over the state of another controller; its target, ada_kimg and interval are not part of it."""
        self.p, self.r_t, self._signs = float(state["p"]), float(state["r_t"]), float(state["signs"])
        self._images, self._steps = int(state["images"]), int(state["steps"])


def octave_filters() -> Tensor:
    """Four filters that sum to the identity and split an image into octaves, from coarse to fine. -> (4, 43) taps.

    The bands [0, 1/8], [1/8, 1/4], [1/4, 1/2] and [1/2, 1] of the highest frequency, built from the sym2 wavelet as an
    undecimated, zero-phase tree (Appendix B): the finest band is what its lowpass, applied forwards and backwards,
    leaves; the coarser signal is split again with the same filter spread by 2, then by 4.
    """
    lowpass = torch.tensor([-1, 0, 9, 16, 9, 0, -1]) / 32  # autocorrelation of the sym2 filter, halved: exact
    bands: list[Tensor] = []
    rest = torch.ones(1)
    for spread in (1, 2, 4):
        low = torch.zeros(6 * spread + 1)
        low[::spread] = lowpass
        high = -low
        high[3 * spread] += 1
        bands.insert(0, _convolve(rest, high))
        rest = _convolve(rest, low)
    bands.insert(0, rest)
    longest = len(rest)
    return torch.stack([F.pad(band, [(longest - len(band)) // 2] * 2) for band in bands])


def _convolve(a: Tensor, b: Tensor) -> Tensor:
    return F.conv1d(a[None, None], b.flip(0)[None, None], padding=len(b) - 1)[0, 0]


def per_image(x: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1), to multiply images with."""
    return x[:, None, None, None]


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of (B, 3, 3), in full precision whatever is set for matrix products on GPUs."""
    return (a[:, :, :, None] * b[:, None]).sum(2)


def scaling(x: Tensor, y: Tensor) -> Tensor:
    """(B,), (B,) -> (B, 3, 3)."""
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return _matrix(x, zero, zero, zero, y, zero, zero, zero, one)


def rotation(angle: Tensor) -> Tensor:
    """Radians (B,), positive from x to y -> (B, 3, 3)."""
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return _matrix(cos, -sin, zero, sin, cos, zero, zero, zero, one)


def translation(x: Tensor, y: Tensor) -> Tensor:
    """Pixels (B,), (B,) -> (B, 3, 3)."""
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return _matrix(one, zero, x, zero, one, y, zero, zero, one)


def _matrix(*entries: Tensor) -> Tensor:
    return torch.stack(entries, 1).unflatten(1, (3, 3))
