"""Projection: the styles and noise maps whose image is like a given one (StyleGAN2, arXiv 1912.04958, Appendix D)."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from .networks import Generator, Synthesis, SynthesisLayer

__all__ = ["SPACES", "Distance", "Projection", "project", "render"]

Distance = Callable[[Tensor, Tensor], Tensor]
SPACES = ("w", "w+")
W_SAMPLES = 10_000
SMALLEST_MAP = 8  # pixels; down to here noise maps must not correlate


@dataclass(frozen=True)
class Projection:
    """What `project` found; row b belongs to target b. All on the device of the generator, without gradients.

    Attributes:
        space: "w" (one style for all layers) or "w+" (one for each).
        ws: (B, num_ws, w_dim) styles; in the space w all styles of a row are equal.
        noises: noise maps (B, 1, H, W) by the name of their buffer in the synthesis network.
        images: (B, C, H, W) of these, around [-1, 1], not clamped; `render` makes them again.
        distance: (B,) of these images to their targets.
        distances: (B, steps) in each step, of the image that the step saw: with noise on its style.
        w_avg, w_std: (B, w_dim) mean and (B,) root mean squared distance to it of the styles where the search began.
        snapshot_steps: S steps, the first 0, after which pictures of the search were taken, the last one at its end.
        snapshots: (B, S, C, H, W), without noise on the style.
        snapshot_distances: (B, S).
    """

    space: str
    ws: Tensor
    noises: dict[str, Tensor]
    images: Tensor
    distance: Tensor
    distances: Tensor
    w_avg: Tensor
    w_std: Tensor
    snapshot_steps: tuple[int, ...]
    snapshots: Tensor
    snapshot_distances: Tensor


def project(
    generator: Generator,
    target: Tensor,
    distance: Distance,
    *,
    space: str = "w",
    steps: int = 500,
    seed: int = 0,
    c: Tensor | None = None,
    learning_rate: float = 0.05,
    pixel_weight: float = 0.0,
    noise_scale: float = 0.05,
    noise_weight: float = 1e5,
    snapshots: int = 6,
) -> Projection:
    """Search, from the mean style on, for styles and noise maps whose images are like the targets.

    Adam minimises distance + pixel_weight * mean squared difference + noise_weight * correlation of the noise maps.
    Its rate rises over the first 5 % of the steps and falls as a cosine over the last 25 %. Noise on the style, which
    fades out over the first 75 %, lets the search see more than the next valley. Every image is searched for on its
    own and all with the same random numbers, so that a result depends on the others of its batch by rounding only.

    Args:
        generator: stays as it is; the search runs on a copy of its synthesis network, in float32.
        target: (B, C, H, W) in [-1, 1].
        distance: images (B, C, H, W) and targets -> (B,), differentiable; the paper takes LPIPS (see `reduced`).
        space: "w" for one style, which keeps to what the generator knows; "w+" for one per layer, which comes nearer.
        seed: of the samples for the mean, the noise on the style and the first noise maps.
        c: (B, c_dim) conditions; the search starts at their mean styles.
        steps, learning_rate: 1000 and 0.1 in the paper; the largest step size of Adam.
        noise_scale: standard deviation of the first noise on the style, in units of `w_std`.
        snapshots: number of pictures of the search, both ends included.

    Raises:
        ValueError: an unknown space, less than one step, or targets or conditions that the generator does not fit.
    """
    _check(generator, target, space, steps, c, learning_rate)
    device = next(generator.parameters()).device
    draw = torch.Generator().manual_seed(seed)
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        target = target.detach().to(device, torch.float32).clone()
        w_avg, w_std = style_statistics(generator, c, draw)
        w_avg, w_std = w_avg.expand(len(target), -1), w_std.expand(len(target))
        synthesis = _float32_copy(generator.synthesis)
        noises = _random_noises(synthesis, len(target), draw)
        w = w_avg[:, None].repeat(1, generator.num_ws if space == "w+" else 1, 1).requires_grad_()
        searched = [w, *noises.values()]
        optimizer = torch.optim.Adam(searched, betas=(0.9, 0.999))

        def picture(w: Tensor) -> tuple[Tensor, Tensor]:
            images = synthesis(w.expand(-1, generator.num_ws, -1), noise_mode="const")
            return images, distance(images, target)

        taken: dict[int, tuple[Tensor, Tensor]] = {}
        taking, history = _snapshot_steps(steps, snapshots), []
        bar = tqdm(range(steps), desc=f"projecting into {space}", unit="step", leave=False, disable=None)
        for step in bar:
            if step in taking:
                with torch.no_grad():
                    taken[step] = picture(w)
            spread = noise_scale * w_std * max(0.0, 1 - step / (0.75 * steps)) ** 2
            jitter = torch.randn(w.shape[1:], generator=draw).to(device) * spread[:, None, None]
            images, loss = picture(w + jitter)
            history.append(loss.detach())
            if pixel_weight:
                loss = loss + pixel_weight * (images - target).square().mean((1, 2, 3))
            if noises:
                loss = loss + noise_weight * noise_correlation(noises)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * rate_factor(step, steps)
            for one, gradient in zip(searched, torch.autograd.grad(loss.sum(), searched), strict=True):
                one.grad = gradient  # not by backward, which would leave gradients in the networks of `distance`
            optimizer.step()
            _normalise(noises)
            if step % 10 == 0:
                bar.set_postfix(distance=f"{float(history[-1].mean()):.3f}", refresh=False)

        ws = w.detach().expand(-1, generator.num_ws, -1).clone()
        found = {name: noise.detach() for name, noise in noises.items()}
        images = render(generator, ws, found)
        with torch.no_grad():
            final = distance(images, target)
        taken[steps] = images, final
    return Projection(
        space=space,
        ws=ws,
        noises=found,
        images=images,
        distance=final,
        distances=torch.stack(history, 1),
        w_avg=w_avg.clone(),
        w_std=w_std.clone(),
        snapshot_steps=tuple(taken),
        snapshots=torch.stack([image for image, _ in taken.values()], 1),
        snapshot_distances=torch.stack([value for _, value in taken.values()], 1),
    )


@torch.no_grad()
def render(generator: Generator, ws: Tensor, noises: Mapping[str, Tensor]) -> Tensor:
    """Images (B, C, H, W) of styles (B, num_ws, w_dim) and noise maps (B, 1, H, W), in float32.

    One after the other, so that the same row gives the same bits in any batch. The generator stays as it is.

    Raises:
        ValueError: the noise maps are not those of this generator.
    """
    synthesis = _float32_copy(generator.synthesis)
    layers = _noise_layers(synthesis)
    shapes = {name: (len(ws), 1, layer.resolution, layer.resolution) for name, layer in layers.items()}
    given = {name: tuple(noise.shape) for name, noise in noises.items()}
    if shapes != given:
        wrong = sorted(name for name in shapes.keys() | given.keys() if shapes.get(name) != given.get(name))
        raise ValueError(f"noise maps do not fit the generator, first {', '.join(wrong[:3])}; take its own projection")
    images = []
    with torch.autocast(ws.device.type, enabled=False):
        for i in range(len(ws)):
            for name, layer in layers.items():
                layer.noise_const = noises[name][i : i + 1]
            images.append(synthesis(ws[i : i + 1], noise_mode="const"))
    return torch.cat(images)


@torch.no_grad()
def style_statistics(
    generator: Generator, c: Tensor | None, draw: torch.Generator, samples: int = W_SAMPLES
) -> tuple[Tensor, Tensor]:
    """Mean style (B, w_dim) and root mean squared distance to it (B,) over random latents, for each condition.

    Without conditions B is 1.
    """
    device = next(generator.parameters()).device
    z = torch.randn(samples, generator.z_dim, generator=draw).to(device)
    kinds, rows = (None, None) if c is None else c.to(device).unique(dim=0, return_inverse=True)
    of_kinds = [None] if kinds is None else [kind.expand(samples, -1) for kind in kinds]
    styles = torch.stack([generator.mapping(z, kind)[:, 0] for kind in of_kinds])
    w_avg = styles.mean(1)
    w_std = (styles - w_avg[:, None]).square().sum(2).mean(1).sqrt()
    return (w_avg, w_std) if rows is None else (w_avg[rows], w_std[rows])


def noise_correlation(noises: Mapping[str, Tensor]) -> Tensor:
    """Sum over maps and scales of the squared correlation of neighbours: noise maps (B, 1, H, W) -> (B,).

    Both directions, wrapping at the borders; each map at full size and at every half size down to 8x8, scaled to keep
    the variance of white noise (Appendix D). Zero for white noise, so that no picture hides in the noise maps.
    """
    terms = []
    for noise in noises.values():
        while True:
            for axis in (2, 3):
                terms.append((noise * noise.roll(1, axis)).mean((1, 2, 3)).square())
            if noise.shape[2] <= SMALLEST_MAP:
                break
            noise = 2 * F.avg_pool2d(noise, 2)
    return torch.stack(terms).sum(0)


def rate_factor(step: int, steps: int) -> float:
    """Share of the learning rate in step 0 to steps - 1: linear rise over 5 %, cosine fall over the last 25 %."""
    rise = min(1.0, (step + 1) / (0.05 * steps))
    fall = min(1.0, (steps - step) / (0.25 * steps))
    return rise * (0.5 - 0.5 * math.cos(math.pi * fall))


def reduced(images: Tensor, side: int = 256) -> Tensor:
    """Images (B, C, H, W) averaged down to at most `side` pixels: LPIPS looks at 256 px whatever G makes."""
    return F.adaptive_avg_pool2d(images, side) if images.shape[-1] > side else images


def _check(
    generator: Generator, target: Tensor, space: str, steps: int, c: Tensor | None, learning_rate: float
) -> None:
    if space not in SPACES:
        raise ValueError(f"space is {space!r}; choose {' or '.join(SPACES)}")
    if steps < 1:
        raise ValueError(f"steps is {steps}; at least 1 is needed")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"learning_rate is {learning_rate}; a number above 0 is needed")
    expected = (generator.img_channels, generator.img_resolution, generator.img_resolution)
    if target.ndim != 4 or tuple(target.shape[1:]) != expected or not len(target):
        raise ValueError(
            f"target has shape {tuple(target.shape)}; the generator needs (B, {', '.join(map(str, expected))})"
        )
    given = None if c is None else tuple(c.shape)
    if given != ((len(target), generator.c_dim) if generator.c_dim else None):
        needed = f"(B, {generator.c_dim}) with one row per target" if generator.c_dim else "none"
        raise ValueError(f"conditions c are {given or 'missing'}; the generator takes {needed}")


def _float32_copy(synthesis: Synthesis) -> Synthesis:
    """A copy of our own to put noise maps into; float16 would lose the small gradients of the search."""
    own = copy.deepcopy(synthesis).requires_grad_(False)
    for module in own.modules():
        if hasattr(module, "use_fp16"):
            module.use_fp16 = False  # type: ignore[assignment]
    return own


def _noise_layers(synthesis: Synthesis) -> dict[str, SynthesisLayer]:
    return {
        f"{name}.noise_const": module
        for name, module in synthesis.named_modules()
        if isinstance(module, SynthesisLayer) and module.use_noise
    }


def _random_noises(synthesis: Synthesis, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """Put white noise, to be optimised, into a synthesis network: (batch, 1, H, W) with equal rows."""
    noises = {}
    for name, layer in _noise_layers(synthesis).items():
        noise = torch.randn(layer.resolution, layer.resolution, generator=draw).to(layer.noise_const)
        noises[name] = layer.noise_const = noise.repeat(batch, 1, 1, 1).requires_grad_()
    _normalise(noises)
    return noises


@torch.no_grad()
def _normalise(noises: Mapping[str, Tensor]) -> None:
    """Bring every noise map of every image to mean 0 and variance 1, in place."""
    for noise in noises.values():
        noise -= noise.mean((1, 2, 3), keepdim=True)
        noise *= noise.square().mean((1, 2, 3), keepdim=True).rsqrt()


def _snapshot_steps(steps: int, count: int) -> list[int]:
    """Steps of which pictures are taken, denser at the start, where more happens; the end is added later."""
    return sorted({round(steps * (i / max(count - 1, 1)) ** 2) for i in range(count - 1)} | {0})
