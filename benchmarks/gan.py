"""Speed and memory of the generator and its training, as JSON: python benchmarks/gan.py."""

import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor as Pool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import torch
import typer
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import timing
from benchmarks.timing import LAYOUTS, Device, Rounds, Seconds, Threads, Work, duration, flops
from stylegan2_ada.networks import Discriminator, Generator
from stylegan2_ada.training import GanSettings, GanTrainer

PATH_LENGTH_INTERVAL = 4  # as published with ADA


@dataclass(frozen=True)
class Size:
    """A network to measure: widths, mapping, and the batch that a CPU and a GPU get."""

    resolution: int
    channel_base: int
    channel_max: int
    latent: int
    mapping_layers: int
    r1_gamma: float
    batch_cpu: int
    batch_cuda: int


SIZES = {
    "64": Size(64, 2048, 64, 64, 2, 1.0, 16, 64),
    "paper256": Size(256, 16384, 512, 512, 8, 1.0, 4, 64),
}


def gan(
    sizes: Annotated[str, typer.Option(metavar="64,paper256", help="Networks to measure.")] = "64,paper256",
    rounds: Rounds = 3,
    seconds: Seconds = 1.0,
    threads: Threads = 0,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16 (autocast).")] = "float32",
    compiled: Annotated[bool, typer.Option("--compile", help="Also time the compiled generator.")] = False,
) -> None:
    """Generator forward, forward + backward, and a training iteration, beside the machine's convolution peak."""
    names = timing.chosen("sizes", sizes, SIZES)
    timing.chosen("dtype", dtype, timing.DTYPES)
    kind = timing.set_up(threads, device)
    peaks = timing.peak_works(kind, dtype)
    works = {name: gan_works(SIZES[name], kind, dtype, compiled) for name in names}
    timed: dict[str, list[dict[str, float]]] = {name: [] for name in works}
    peak_rates = []
    for _ in range(rounds):
        for name, parts in works.items():
            # The peak is taken beside each network, since a busy or throttled machine slows both alike.
            rates = {key: timing.rate(work, kind, seconds) for key, work in peaks.items()}
            peak_rates.append(rates)
            row = {key: duration(work, kind, seconds) for key, work in parts.items()}
            timed[name].append(row | {"peak": max(rates.values())})
    results: dict[str, Any] = {"machine": timing.machine(kind), "dtype": dtype, "rounds": rounds}
    results["convolution_peak_gflops"] = {
        key: round(statistics.median(rates[key] for rates in peak_rates) / 1e9, 1) for key in LAYOUTS
    }
    for name, parts in works.items():
        results[name] = report(parts, timed[name])
        for key in ("forward", "forward_backward", "training_iteration"):
            results[name][key]["peak_memory_mib"] = peak_memory(name, key, kind, dtype)
    timing.show(results)


def gan_works(size: Size, kind: str, dtype: str, compiled: bool) -> dict[str, Work]:
    """What is timed for one network. Regularised steps are timed by themselves, to be amortised in `report`."""
    trainer, batch = make_trainer(size, kind)
    z = torch.randn(batch, size.latent, device=kind)
    images = torch.rand(batch, 3, size.resolution, size.resolution, device=kind) * 2 - 1
    images = images.contiguous(memory_format=torch.channels_last)
    noise = torch.randn_like(images)

    def autocast() -> torch.autocast:
        return torch.autocast(kind, torch.bfloat16, enabled=dtype == "bfloat16")

    def forward(network: Callable[[Tensor], Tensor] = trainer.ema) -> None:
        with torch.no_grad(), autocast():
            network(z)

    def forward_backward() -> None:
        trainer.generator.zero_grad(set_to_none=True)
        with autocast():
            image = trainer.generator(z)
        (image * noise).sum().backward()

    def step(number: int) -> Callable[[], Any]:
        return autocast()(lambda: trainer.step(images, number))

    runs: dict[str, Callable[[], Any]] = {"forward": forward, "forward_backward": forward_backward}
    runs |= {name: step(number) for name, number in step_numbers(trainer.settings).items()}
    if compiled or kind == "cuda":
        fast = torch.compile(trainer.ema)
        runs["forward_compiled"] = lambda: forward(fast)
    if kind == "cuda":
        runs["forward_reference_operations"] = without_kernels(forward)
        runs["forward_backward_reference_operations"] = without_kernels(forward_backward)
    return {name: Work(run, batch) for name, run in runs.items()}


def step_numbers(settings: GanSettings) -> dict[str, int]:
    """A step without regularisation, one with path lengths, and one with R1 as well."""
    r1, lengths = settings.r1_interval, settings.path_length_interval
    return {
        "step": next(i for i in range(1, 99) if i % r1 and i % lengths),
        "step_path_length": next(i for i in range(1, 99) if i % r1 and not i % lengths),
        "step_both": r1 * lengths,
    }


def without_kernels(run: Callable[[], None]) -> Callable[[], None]:
    """The same with the operations in plain PyTorch."""
    return patch("stylegan2_ada.ops.backend.obstacle", lambda kind, index: "they are switched off to compare")(run)


def make_trainer(size: Size, kind: str) -> tuple[GanTrainer, int]:
    """Random networks, and how many images a batch has."""
    batch = size.batch_cuda if kind == "cuda" else size.batch_cpu
    torch.manual_seed(0)
    widths: dict[str, Any] = {"channel_base": size.channel_base, "channel_max": size.channel_max}
    generator = Generator(
        size.latent, 0, size.latent, size.resolution, 3, {"num_layers": size.mapping_layers}, synthesis_kwargs=widths
    )
    discriminator = Discriminator(0, size.resolution, 3, **widths)
    for net in (generator, discriminator):
        net.to(kind).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    settings = GanSettings(batch_size=batch, r1_gamma=size.r1_gamma, path_length_interval=PATH_LENGTH_INTERVAL)
    return GanTrainer(generator, discriminator, settings), batch


def report(parts: dict[str, Work], timed: list[dict[str, float]]) -> dict[str, Any]:
    """Images/s, GFLOP per image and fraction of the peak: medians over the rounds, regularisation amortised."""
    numbers = {key: flops(work) for key, work in parts.items()}
    rows = [amortised(row) | {"peak": row["peak"]} for row in timed]
    results: dict[str, Any] = {"batch": parts["forward"].images}
    for key, count in amortised(numbers).items():
        results[key] = {
            "images_per_second": round(statistics.median(results["batch"] / row[key] for row in rows), 2),
            "gflop_per_image": round(count / results["batch"] / 1e9, 4),
            "fraction_of_peak": round(statistics.median(count / row[key] / row["peak"] for row in rows), 3),
        }
    return results


def amortised(values: dict[str, Any]) -> dict[str, float]:
    """Steps with R1 every 16th and path lengths every 4th time, as one mean training iteration."""
    settings = GanSettings(path_length_interval=PATH_LENGTH_INTERVAL)
    plain, lengths, both = (values[key] for key in ("step", "step_path_length", "step_both"))
    mean = plain + (lengths - plain) / settings.path_length_interval + (both - lengths) / settings.r1_interval
    kept = {key: value for key, value in values.items() if key.startswith("forward")}
    return kept | {"training_iteration": mean}


def peak_memory(name: str, key: str, kind: str, dtype: str) -> int | None:
    """MiB that the work adds at its peak: resident memory of a fresh process, or memory allocated on the GPU."""
    with Pool(1, get_context("spawn")) as pool:
        return pool.submit(_peak_memory, name, key, kind, dtype, torch.get_num_threads()).result()


def _peak_memory(name: str, key: str, kind: str, dtype: str, threads: int) -> int | None:
    timing.set_up(threads, kind)
    work = gan_works(SIZES[name], kind, dtype, compiled=False)["step_both" if key == "training_iteration" else key]
    peak = timing.peak_since(kind)
    work.run()
    return peak()


if __name__ == "__main__":
    timing.start(gan)
