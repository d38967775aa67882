"""Speed and memory of this project's heavy parts on this machine, as JSON: python scripts/benchmark.py gan."""

import json
import math
import os
import platform
import socket
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor as Pool
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

sys.path.insert(0, str(Path(__file__).parents[1]))

from stylegan2_ada.memory import keep_freed_memory
from stylegan2_ada.networks import Discriminator, Generator
from stylegan2_ada.training import GanSettings, GanTrainer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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


@dataclass(frozen=True)
class Work:
    """One thing to time: `run` does it once on `images` images."""

    run: Callable[[], Any]
    images: int


@app.command()
def gan(
    sizes: Annotated[str, typer.Option(metavar="64,paper256", help="Networks to measure.")] = "64,paper256",
    rounds: Annotated[int, typer.Option(min=1, help="Each round times everything once; medians are printed.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.0, help="Least time for each figure and round.")] = 1.0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 takes one for each core.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda; auto takes a GPU if there is one.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16 (autocast).")] = "float32",
    compiled: Annotated[bool, typer.Option("--compile", help="Also time the compiled generator.")] = False,
) -> None:
    """Generator forward, forward + backward, and a training iteration, beside the machine's convolution peak."""
    unknown = [name for name in sizes.split(",") if name not in SIZES]
    if unknown or dtype not in DTYPES:
        raise typer.BadParameter(
            f"{unknown or dtype}: choose sizes of {', '.join(SIZES)} and dtypes of {', '.join(DTYPES)}"
        )
    keep_freed_memory()
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    kind = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    results: dict[str, Any] = {"machine": machine(kind), "dtype": dtype, "rounds": rounds}
    peaks = {name: peak_work(layout, kind, DTYPES[dtype]) for name, layout in LAYOUTS.items()}
    works = {name: gan_works(SIZES[name], kind, dtype, compiled) for name in sizes.split(",")}
    timed: dict[str, list[dict[str, float]]] = {name: [] for name in works}
    peak_rates = []
    for _ in range(rounds):
        for name, parts in works.items():
            # The peak is taken beside each network, since a busy or throttled machine slows both alike.
            rate = {key: flops(work) / duration(work, kind, seconds) for key, work in peaks.items()}
            peak_rates.append(rate)
            row = {key: duration(work, kind, seconds) for key, work in parts.items()}
            timed[name].append(row | {"peak": max(rate.values())})
    results["convolution_peak_gflops"] = {
        key: round(statistics.median(rate[key] for rate in peak_rates) / 1e9, 1) for key in LAYOUTS
    }
    for name, parts in works.items():
        results[name] = report(parts, timed[name])
        for key in ("forward", "forward_backward", "training_iteration"):
            results[name][key]["peak_memory_mib"] = peak_memory(name, key, kind, dtype)
    typer.echo(json.dumps(results, indent=2))


@app.command()
def concepts(
    model: Annotated[Path, typer.Option(help="Ensemble to measure.")] = Path(
        "viscoin/assets/birds/viscoin.safetensors"
    ),
    images: Annotated[int, typer.Option(min=2, help="Test images to read.")] = 2000,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, help="Each round times both once; medians are printed.")] = 5,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 takes one for each core.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda; auto takes a GPU if there is one.")] = "auto",
) -> None:
    """The concepts of images in memory, nothing cached, beside a plain forward pass of f over the same batches."""
    from viscoin.analysis.concepts import collect_concepts
    from viscoin.config import DatasetConfig
    from viscoin.datasets import ImageDataset, load_dataset
    from viscoin.inference.batches import evaluation, image_batches
    from viscoin.models.files import load_model

    keep_freed_memory()
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    kind = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_model(model, "viscoin")
    config = DatasetConfig.model_validate(loaded.recipe["dataset"])
    dataset = load_dataset(config.name, "test", config)
    chosen = np.arange(min(images, len(dataset)))
    pixels, labels = np.array(dataset.pixels[chosen]), dataset.labels[chosen]
    dataset = ImageDataset(dataset.name, dataset.split, pixels, labels, dataset.class_names)

    def forward() -> None:
        f = loaded.model.classifier
        with evaluation(f, kind):
            for batch, _ in image_batches(dataset, chosen, batch_size, kind, "forward"):
                f(batch).cpu()

    def collect() -> None:
        collect_concepts(loaded.model, dataset, kind, batch_size, force=True)

    seconds: dict[str, list[tuple[float, float]]] = {"forward": [], "concepts": []}
    for _ in range(rounds + 1):
        for name, run in (("forward", forward), ("concepts", collect)):
            start = time.perf_counter(), time.process_time()
            run()
            seconds[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    results: dict[str, Any] = {"machine": machine(kind), "model": str(model), "concepts": loaded.model.n_concepts}
    results |= {"images": len(dataset), "batch_size": batch_size, "rounds": rounds}
    for column, clock in enumerate(("wall", "cpu")):  # the second holds on a busy machine too, if threads is 1
        f_times, own_times = ([row[column] for row in rows[1:]] for rows in seconds.values())  # the first warms up
        results[clock] = {
            "forward_seconds": round(statistics.median(f_times), 3),
            "concepts_seconds": round(statistics.median(own_times), 3),
            "ratio": round(statistics.median(own / f for f, own in zip(f_times, own_times)), 3),
        }
    typer.echo(json.dumps(results, indent=2))


@app.command()
def data(
    sizes: Annotated[str, typer.Option(metavar="64,256", help="Sides of the squares, pixels.")] = "64,256",
    workers: Annotated[str, typer.Option(metavar="1,2", help="Threads of ours, processes of torchvision.")] = "1,2",
    images: Annotated[int, typer.Option(min=100, help="JPEG files to make, of 256 to 500 px a side.")] = 2000,
    epochs: Annotated[int, typer.Option(min=2, help="Passes over the files; the first one decodes.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Each round times everything once; medians are printed.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 64,
) -> None:
    """The loader alone, decoding included, beside a plain torchvision ImageFolder and DataLoader on the same files."""
    cases = [(int(size), int(count)) for size in sizes.split(",") for count in workers.split(",")]
    timed: dict[tuple[int, int], list[dict[str, list[Epoch]]]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder), images)
        for number in range(rounds):
            for size, count in cases:
                row = {}
                for loader in list(LOADERS)[:: 1 if number % 2 else -1]:
                    work = (loader, folder, size, count, epochs, batch_size)
                    with Pool(1, get_context("spawn")) as pool:
                        row[loader] = pool.submit(loader_epochs, *work).result()
                timed[size, count].append(row)
    results: dict[str, Any] = {"machine": machine("cpu") | {"threads": 1}, "images": images, "rounds": rounds}
    results |= {"batch_size": batch_size, "cores": len(os.sched_getaffinity(0)), "loaders": []}
    for (size, count), rows in timed.items():
        results["loaders"].append({"size": size, "workers": count} | loader_report(rows, images))
    typer.echo(loader_table(results["loaders"]), err=True)
    typer.echo(json.dumps(results, indent=2))


@app.command()
def viscoin(
    sizes: Annotated[
        str, typer.Option("--size", metavar="birds,256", help="What to measure; any recipe will do.")
    ] = "birds",
    dtypes: Annotated[str, typer.Option(metavar="float32,bfloat16", help="bfloat16 is autocast.")] = "float32,bfloat16",
    processes: Annotated[str, typer.Option(metavar="1,2", help="Processes that share a batch, by gloo.")] = "1",
    compiled: Annotated[bool, typer.Option("--compile", help="Also with f, Psi and G compiled.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Each round times everything once; medians are printed.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.0, help="Least time for each figure and round.")] = 3.0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of all processes; 0 takes one for each core.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda; auto takes a GPU if there is one.")] = "auto",
) -> None:
    """A training step of the ensemble, by part, beside the convolution peak; random weights and images.

    With --threads 1 on the CPU the clock is that of the process, so that a busy machine does not count.
    """
    if unknown := [name for name in dtypes.split(",") if name not in DTYPES]:
        raise typer.BadParameter(f"{unknown}: choose dtypes of {', '.join(DTYPES)}")
    keep_freed_memory()
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    kind = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    clock = time.process_time if kind == "cpu" and threads == 1 else time.perf_counter
    cases = [
        StepCase(size, dtype, mode, int(count))
        for size in sizes.split(",")
        for dtype in dtypes.split(",")
        for mode in ("eager", "compiled")[: 1 + compiled]
        for count in processes.split(",")
    ]
    peaks = {dtype: [peak_work(layout, kind, DTYPES[dtype]) for layout in LAYOUTS.values()] for dtype in DTYPES}
    steps = {case: TrainingStep(case, kind) for case in cases if case.processes == 1}
    rows: dict[StepCase, list[dict[str, Any]]] = {case: [] for case in cases}
    for _ in range(rounds):
        for case, step in steps.items():
            peak = max(flops(work) / duration(work, kind, seconds / 3, clock) for work in peaks[case.dtype])
            rows[case].append(step.measure(seconds, clock) | {"peak": peak})
    for case in cases:
        if case.processes > 1:
            rows[case] = shared_steps(case, kind, rounds, seconds)
            peak = max(flops(work) / duration(work, kind, seconds / 3) for work in peaks[case.dtype])
            rows[case] = [row | {"peak": peak} for row in rows[case]]
    results: dict[str, Any] = {"machine": machine(kind), "rounds": rounds, "clock": clock.__name__, "steps": []}
    for case in cases:
        alone = case.processes == 1
        memory = step_memory(case, kind) if alone else max(row["memory"] for row in rows[case])
        results["steps"].append(step_report(case, rows[case]) | {"peak_memory_mib": memory})
    typer.echo(step_table(results["steps"]), err=True)
    typer.echo(json.dumps(results, indent=2))


def machine(kind: str) -> dict[str, Any]:
    """What the numbers were measured on."""
    name = torch.cuda.get_device_name() if kind == "cuda" else platform.processor() or platform.machine()
    return {"device": kind, "name": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def peak_work(layout: torch.memory_format, kind: str, dtype: torch.dtype) -> Work:
    """A 3x3 convolution of 128 channels at 64x64, whose rate counts as the machine's peak."""
    n = 64 if kind == "cuda" else 4
    x = torch.randn(n, 128, 64, 64, device=kind, dtype=dtype).contiguous(memory_format=layout)
    conv = nn.Conv2d(128, 128, 3, padding=1, bias=False, device=kind, dtype=dtype).to(memory_format=layout)
    return Work(torch.no_grad()(lambda: conv(x)), n)


def gan_works(size: Size, kind: str, dtype: str, compiled: bool) -> dict[str, Work]:
    """What is timed for one network. Regularised steps are timed by themselves, to be amortised in `report`."""
    trainer, batch = make_trainer(size, kind)
    generator = trainer.ema
    z = torch.randn(batch, size.latent, device=kind)
    images = torch.rand(batch, 3, size.resolution, size.resolution, device=kind) * 2 - 1
    images = images.contiguous(memory_format=torch.channels_last)
    noise = torch.randn_like(images)
    trained = trainer.generator

    def autocast() -> torch.autocast:
        return torch.autocast(kind, torch.bfloat16, enabled=dtype == "bfloat16")

    def forward(network: Callable[[Tensor], Tensor] = generator) -> None:
        with torch.no_grad(), autocast():
            network(z)

    def forward_backward() -> None:
        trained.zero_grad(set_to_none=True)
        with autocast():
            image = trained(z)
        (image * noise).sum().backward()

    def step(number: int) -> None:
        with autocast():
            trainer.step(images, number)

    settings = trainer.settings
    plain = next(i for i in range(1, 99) if i % settings.r1_interval and i % settings.path_length_interval)
    lengths = next(i for i in range(1, 99) if i % settings.r1_interval and not i % settings.path_length_interval)
    both = settings.r1_interval * settings.path_length_interval
    works = {
        "forward": Work(forward, batch),
        "forward_backward": Work(forward_backward, batch),
        "step": Work(lambda: step(plain), batch),
        "step_path_length": Work(lambda: step(lengths), batch),
        "step_both": Work(lambda: step(both), batch),
    }
    if compiled or kind == "cuda":
        fast = torch.compile(generator)
        works["forward_compiled"] = Work(lambda: forward(fast), batch)
    if kind == "cuda":
        works["forward_reference_operations"] = Work(without_kernels(forward), batch)
        works["forward_backward_reference_operations"] = Work(without_kernels(forward_backward), batch)
    return works


def without_kernels(run: Callable[[], None]) -> Callable[[], None]:
    """The same with the operations in plain PyTorch."""
    return patch("stylegan2_ada.ops.backend.obstacle", lambda kind, index: "they are switched off to compare")(run)


def make_trainer(size: Size, kind: str) -> tuple[GanTrainer, int]:
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


class FlopCounter(TorchDispatchMode):
    """torch's formulas without its FlopCounterMode, whose module hooks do not survive the double backward of R1."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        self.total += formula(*args, **(kwargs or {}), out_val=out) if formula else 0
        return out


def flops(work: Work) -> int:
    """Multiplications and additions of convolutions and matrix products, as torch counts them."""
    with FlopCounter() as counter:
        work.run()
    return counter.total


def duration(work: Work, kind: str, least: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """Median seconds of one run after one to warm up: three runs or as many as `least` seconds take, less if slow."""
    times: list[float] = []
    work.run()
    while not times or sum(times) < least or (len(times) < 3 and sum(times) < 3 * least):
        synchronize(kind)
        start = clock()
        work.run()
        synchronize(kind)
        times.append(clock() - start)
    return statistics.median(times)


def synchronize(kind: str) -> None:
    if kind == "cuda":
        torch.cuda.synchronize()


def report(parts: dict[str, Work], timed: list[dict[str, float]]) -> dict[str, Any]:
    """Images/s, GFLOP per image and fraction of the peak: medians over the rounds, regularisation amortised."""
    counts = {key: flops(work) for key, work in parts.items()}
    rows = [amortised(row) | {"peak": row["peak"]} for row in timed]
    results: dict[str, Any] = {"batch": parts["forward"].images}
    for key, count in amortised(counts).items():
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
    keep_freed_memory()
    torch.set_num_threads(threads)
    work = gan_works(SIZES[name], kind, dtype, compiled=False)["step_both" if key == "training_iteration" else key]
    peak = peak_since(kind)
    work.run()
    return peak()


def _kilobytes(status: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))


# Recipes whose ensembles are measured. Float16 blocks of G, which GPUs get, are left out, so that float32 means it.
ENSEMBLES = {"256": "birds256"}
OVERRIDES = {"gan.num_fp16_res": 0, "viscoin.perceptual_loss": "classifier"}
WARM_UP = 4  # steps until the memory and the compiled code are there
NETWORKS = ("f", "Psi, Theta", "Omega, G", "perceptual")
OUTSIDE = ("data", "losses", "optimiser", "rest")


class StepCase(NamedTuple):
    """One way to take a step."""

    size: str
    dtype: str
    mode: str  # eager or compiled
    processes: int


class TrainingStep:
    """A training step on random images, data included; in each process its share of the batch."""

    def __init__(self, case: StepCase, kind: str) -> None:
        from viscoin.config import load_recipe
        from viscoin.datasets import ImageDataset
        from viscoin.models.classifier import Classifier
        from viscoin.models.perceptual import Lpips
        from viscoin.training.data import StepBatches, batch_workers
        from viscoin.training.gan import build_generator
        from viscoin.training.runtime import Runtime, make_fabric
        from viscoin.training.viscoin import ViscoinTask, build_ensemble

        threads = torch.get_num_threads()
        name = ENSEMBLES.get(case.size, case.size)
        with_vgg = load_recipe(name).viscoin.perceptual_loss == "lpips"
        recipe = load_recipe(name, OVERRIDES)
        precision = {"float32": "32-true", "bfloat16": "bf16-mixed"}[case.dtype]
        fabric = make_fabric(Runtime(kind, precision, case.processes))
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        names, size = [str(i) for i in range(recipe.dataset.classes or 20)], recipe.dataset.resolution
        f = Classifier(recipe.classifier.backbone, len(names), size)
        g = build_generator(recipe.gan, size)
        g.mapping.w_avg.normal_()
        ensemble = build_ensemble(recipe.viscoin, f, g, names)
        pixels = np.random.default_rng(0).integers(0, 256, (1024, size, size, 3), dtype=np.uint8)
        images = ImageDataset("noise", "train", pixels, np.zeros(len(pixels)), names)
        self.task = ViscoinTask(ensemble, g, recipe.viscoin, fabric, images, case.mode == "compiled")
        if with_vgg:  # random weights take as long as the published ones
            self.task.perceptual = Lpips(fabric.device, pretrained=False)
        self.batches = StepBatches(
            images, recipe.viscoin.batch_size, 0, recipe.viscoin.horizontal_flip, rank=fabric.global_rank,
            world_size=fabric.world_size, workers=batch_workers(fabric.device),
        )  # fmt: skip
        self.case, self.kind, self.images = case, kind, recipe.viscoin.batch_size
        self.number = recipe.viscoin.warmup_steps
        start = time.perf_counter()
        self.run()
        self.first_seconds = time.perf_counter() - start
        for _ in range(WARM_UP - 1):
            self.run()

    def run(self) -> None:
        self.number += 1
        images, labels = self.batches(self.number)
        device = self.task.fabric.device
        self.task.step(images.to(device), labels.to(device), self.number)

    def flops(self) -> int:
        with torch.compiler.set_stance("force_eager"):  # compiled code hides from the counter
            return flops(Work(self.run, self.images))

    def measure(self, seconds: float, clock: Callable[[], float]) -> dict[str, Any]:
        """Seconds and flops of a step, and of its parts."""

        def now() -> float:
            synchronize(self.kind)
            return clock()

        return {
            "images": self.images,
            "first_seconds": self.first_seconds,
            "flops": self.flops(),
            "seconds": duration(Work(self.run, self.images), self.kind, seconds, clock),
            "parts": Split(self, now).of_steps(seconds),
        }


class Split:
    """What the parts of a step take. Networks are wrapped, and hooks on what they give tell where the backward pass is.

    The backward pass visits the networks in reverse order, one after the other; where it is in one of the losses, what
    follows a network counts for that network until the next one, which is little.
    """

    def __init__(self, step: TrainingStep, read: Callable[[], float]) -> None:
        self.step, self.read = step, read
        self.totals: dict[str, float] = defaultdict(float)
        self.part, self.at = "rest", 0.0

    def of_steps(self, seconds: float) -> dict[str, float]:
        """Mean seconds of each part over as many steps as take so long."""
        count = 0
        with ExitStack() as stack:
            for owner, name, part in self._places():
                timed = self._timed(getattr(owner, name), part, backward=name != "backward")
                stack.enter_context(patch.object(owner, name, timed))
            self.at = self.read()
            while sum(self.totals.values()) < seconds or count < 2:
                self.step.run()
                self._switch("rest")
                count += 1
        return {part: total / count for part, total in self.totals.items()}

    def _places(self) -> Iterator[tuple[Any, str, str]]:
        task = self.step.task
        ensemble = task.ensemble
        for module, part in (
            (ensemble.concept_extractor, "Psi, Theta"),
            (ensemble.explainer, "Psi, Theta"),
            (ensemble.generator.mapping, "Omega, G"),
            (ensemble.generator.synthesis, "Omega, G"),
            (task.sampler, "Omega, G"),
        ):
            yield module, "forward" if module._compiled_call_impl is None else "_compiled_call_impl", part
        yield ensemble.classifier, "features", "f"
        yield task, "perceptual", "perceptual"
        yield task, "_terms", "losses"
        yield task.fabric, "backward", "losses backward"
        yield task.optimizer, "step", "optimiser"
        yield self.step, "batches", "data"

    def _timed(self, function: Callable[..., Any], part: str, backward: bool) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            before = self.part
            self._switch(part)
            out = function(*arguments, **options)
            for tensor in _tensors(out) if backward else []:
                if tensor.requires_grad:
                    tensor.register_hook(lambda _: self._switch(f"{part} backward"))
            self._switch(before)
            return out

        return timed

    def _switch(self, part: str) -> None:
        now = self.read()
        self.totals[self.part] += now - self.at
        self.part, self.at = part, now


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


def shared_steps(case: StepCase, kind: str, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """The rounds of several processes, each with its share of the threads, as the first one sees them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = max(1, torch.get_num_threads() // case.processes)
    with Pool(case.processes, get_context("spawn")) as pool:
        work = [
            pool.submit(_shared_steps, rank, port, case, kind, rounds, seconds, threads)
            for rank in range(case.processes)
        ]
        found = [future.result() for future in work]
    for row, *others in zip(*found, strict=True):
        row["flops"] += sum(other["flops"] for other in others)
        row["memory"] = sum(each["memory"] or 0 for each in (row, *others)) or None
    return found[0]


def _shared_steps(
    rank: int, port: int, case: StepCase, kind: str, rounds: int, seconds: float, threads: int
) -> list[dict[str, Any]]:
    place = {"LOCAL_RANK": rank, "RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": case.processes}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(threads)
    peak = peak_since(kind)
    step = TrainingStep(case, kind)
    memory = peak()
    rows: list[dict[str, Any]] = []
    for _ in range(rounds):  # the same number of steps in all processes
        start = time.perf_counter()
        step.run()
        count = max(3, math.ceil(seconds / (time.perf_counter() - start)))
        count = int(step.task.fabric.broadcast(count))
        start = time.perf_counter()
        for _ in range(count):
            step.run()
        synchronize(kind)
        taken = (time.perf_counter() - start) / count
        row: dict[str, Any] = {
            "images": step.images,
            "first_seconds": step.first_seconds,
            "memory": memory,
            "parts": {},
        }
        rows.append(row | {"seconds": taken, "flops": step.flops()})
    return rows


def peak_since(kind: str) -> Callable[[], int | None]:
    """A function that tells the MiB which were added since at their peak: resident memory, or that of the GPU."""
    if kind == "cuda":
        return lambda: math.ceil(torch.cuda.max_memory_allocated() / 2**20)
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():  # Linux alone tells
        return lambda: None
    reset.write_text("5")  # forget the peak of imports
    before = _kilobytes(status, "VmRSS")
    return lambda: math.ceil((_kilobytes(status, "VmHWM") - before) / 1024)


def step_memory(case: StepCase, kind: str) -> int | None:
    """MiB of a step with its networks and optimiser, in a fresh process."""
    with Pool(1, get_context("spawn")) as pool:
        return pool.submit(_step_memory, case, kind, torch.get_num_threads()).result()


def _step_memory(case: StepCase, kind: str, threads: int) -> int | None:
    keep_freed_memory()
    torch.set_num_threads(threads)
    peak = peak_since(kind)
    TrainingStep(case, kind)
    return peak()


def step_report(case: StepCase, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds; the parts in milliseconds and as shares of the step."""
    results: dict[str, Any] = case._asdict() | {"batch": rows[0]["images"]}
    results["images_per_second"] = round(statistics.median(row["images"] / row["seconds"] for row in rows), 2)
    results["milliseconds"] = round(statistics.median(1e3 * row["seconds"] for row in rows), 1)
    results["gflop_per_image"] = round(rows[0]["flops"] / rows[0]["images"] / 1e9, 4)
    results["peak_gflops"] = round(statistics.median(row["peak"] / 1e9 for row in rows), 1)
    shares = [row["flops"] / row["seconds"] / row["peak"] for row in rows]
    results["fraction_of_peak"] = round(statistics.median(shares), 3)
    results["first_step_seconds"] = round(rows[0]["first_seconds"], 1)
    if not rows[0]["parts"]:
        return results
    parts = {part: statistics.median(row["parts"].get(part, 0) for row in rows) for part in step_parts()}
    whole = sum(parts.values())
    results["parts_milliseconds"] = {part: round(1e3 * taken, 2) for part, taken in parts.items()}
    results["share_outside_networks"] = round(
        sum(parts[part] for part in step_parts() if part.removesuffix(" backward") in OUTSIDE) / whole, 4
    )
    return results


def step_parts() -> list[str]:
    """In the order of a step."""
    backward = [f"{part} backward" for part in ("losses", *reversed(NETWORKS))]
    return ["data", *NETWORKS, "losses", *backward, "optimiser", "rest"]


def step_table(results: list[dict[str, Any]]) -> str:
    """A line for each way to take the step, and one for the share of each part in it."""
    columns = ["size", "dtype", "mode", "processes", "images/s", "of peak", "MiB", "first step s", "outside networks"]
    lines = [columns]
    for row in results:
        outside = row.get("share_outside_networks")
        line = [row["size"], row["dtype"], row["mode"], str(row["processes"]), f"{row['images_per_second']:.1f}"]
        line += [f"{row['fraction_of_peak']:.2f}", str(row["peak_memory_mib"]), f"{row['first_step_seconds']:.0f}"]
        lines.append([*line, "-" if outside is None else f"{outside:.1%}"])
    split = [row for row in results if "parts_milliseconds" in row]
    parts = [["ms", *(f"{row['size']} {row['dtype']} {row['mode']}" for row in split)]]
    for part in step_parts():
        parts.append([part, *(f"{row['parts_milliseconds'][part]:.1f}" for row in split)])
    return f"{aligned(lines)}\n\n{aligned(parts)}"


class Epoch(NamedTuple):
    """What one pass over the files took."""

    seconds: float
    cpu_seconds: float  # of all processes
    memory: float  # MiB of all processes after it, files that are mapped into memory left out


def write_photographs(root: Path, count: int) -> None:
    """JPEGs with edges and grain in class folders: `count` to train on, and a few in the other splits."""
    rng = np.random.default_rng(0)
    for split, number in (("train", count), ("validation", 10), ("test", 10)):
        for i in range(number):
            width, height = rng.integers(256, 501, 2)
            coarse = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
            grain = smooth + 6 * rng.standard_normal((height, width, 1), dtype=np.float32)
            path = root / split / f"class {i % 10}" / f"{i:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def loader_epochs(loader: str, folder: str, size: int, workers: int, epochs: int, batch_size: int) -> list[Epoch]:
    """All passes of one loader, in a process of its own with an empty cache."""
    keep_freed_memory()
    torch.set_num_threads(1)
    made: list[Epoch] = []
    with tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, {"XDG_CACHE_HOME": cache}):
        batches = LOADERS[loader](folder, size, workers, batch_size)
        for _ in range(epochs):
            start, cpu = time.perf_counter(), cpu_seconds()
            for pixels, _labels in batches():
                if pixels.shape[1:] != (3, size, size) or pixels.dtype != torch.float32:
                    raise ValueError(f"{loader} gives {pixels.dtype} of shape {tuple(pixels.shape)}")
            seconds, used = time.perf_counter() - start, cpu_seconds() - cpu
            made.append(Epoch(seconds, used, anonymous_memory()))
    return made


def our_loader(folder: str, size: int, workers: int, batch_size: int) -> Callable[[], Iterator[Any]]:
    """Files become squares on a memory map during the first pass."""
    from viscoin.config import DatasetConfig
    from viscoin.datasets import files, load_dataset
    from viscoin.training.data import StepBatches

    made: list[StepBatches] = []
    step = 0

    def batches() -> Iterator[Any]:
        nonlocal step
        if not made:
            with patch.object(files, "cores", lambda: workers):
                dataset = load_dataset(folder, "train", DatasetConfig(resolution=size))
            made.append(StepBatches(dataset, batch_size, 0, horizontal_flip=True, workers=workers))
        for _ in range(math.ceil(len(made[0].dataset) / batch_size)):
            yield made[0](step)
            step += 1

    return batches


def torchvision_loader(folder: str, size: int, workers: int, batch_size: int) -> Callable[[], Iterator[Any]]:
    """As in torchvision's examples, with images in [-1, 1]; worker processes live on between the passes."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    change = transforms.Compose(
        [
            transforms.Resize(size),
            transforms.CenterCrop(size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    made: list[DataLoader] = []

    def batches() -> Iterator[Any]:
        if not made:
            dataset = ImageFolder(f"{folder}/train", change)
            settings: dict[str, Any] = {"persistent_workers": True, "multiprocessing_context": "fork"}
            made.append(DataLoader(dataset, batch_size, True, num_workers=workers, **settings))
        yield from made[0]

    return batches


LOADERS = {"viscoin": our_loader, "torchvision": torchvision_loader}


def processes() -> list[Path]:
    """Folders in /proc of this process and of its workers."""
    return [Path(f"/proc/{number}") for number in ("self", *(child.pid for child in active_children()))]


def cpu_seconds() -> float:
    """Of this process and of its workers: what a loader costs, however busy the machine is."""
    fields = [(place / "stat").read_text().rpartition(")")[2].split() for place in processes()]
    ticks = sum(int(part[11]) + int(part[12]) for part in fields)  # user and system, behind pid and name
    return ticks / os.sysconf("SC_CLK_TCK")


def anonymous_memory() -> float:
    """MiB of this process and of its workers, shared pages counted once, without the page cache of mapped files."""
    rollups = [place / "smaps_rollup" for place in processes()]
    return sum(_kilobytes(rollup, name) for rollup in rollups for name in ("Pss_Anon", "Pss_Shmem")) / 1024


def loader_report(rows: list[dict[str, list[Epoch]]], images: int) -> dict[str, Any]:
    """Medians over the rounds: speed and CPU of the first and of later passes, memory, and ratios to torchvision."""
    results: dict[str, Any] = {name: {} for name in LOADERS}
    for which, part in (("first", slice(0, 1)), ("later", slice(1, None))):
        for label, field in (("speed", "seconds"), ("speed_by_cpu", "cpu_seconds")):
            ours, other = (
                [statistics.mean(getattr(epoch, field) for epoch in row[name][part]) for row in rows]
                for name in LOADERS
            )
            ratios = [theirs / max(own, 0.01) for own, theirs in zip(ours, other, strict=True)]
            results[f"{which}_{label}_ratio"] = round(statistics.median(ratios), 2)
            for name, values in zip(LOADERS, (ours, other), strict=True):
                taken = statistics.median(values)
                if field == "seconds":
                    results[name][f"{which}_images_per_second"] = round(images / taken, 1)
                else:
                    results[name][f"{which}_cpu_ms_per_image"] = round(1e3 * taken / images, 3)
    for name in LOADERS:
        counted = [number for number in (1, 2, 4, 8, 16) if number <= len(rows[0][name])]
        memory = {number: statistics.median(row[name][number - 1].memory for row in rows) for number in counted}
        results[name]["memory_mib"] = {str(number): round(value) for number, value in memory.items()}
    return results


def loader_table(results: list[dict[str, Any]]) -> str:
    """Two lines for each size and number of workers; images/s, and MiB after the first and the last counted pass."""
    names = list(LOADERS)
    columns = ["px", "workers", "pass", *(f"{name}/s" for name in names), "ratio", "by CPU"]
    columns += [f"{name} MiB" for name in names]
    lines = [columns]
    for row in results:
        memory = [[f"{value:.0f}" for value in row[name]["memory_mib"].values()] for name in names]
        for which, at in (("first", 0), ("later", -1)):
            line = [str(row["size"]), str(row["workers"]), which]
            line += [f"{row[name][f'{which}_images_per_second']:.0f}" for name in names]
            line += [f"{row[f'{which}_{label}_ratio']:.2f}" for label in ("speed", "speed_by_cpu")]
            lines.append(line + [each[at] for each in memory])
    return aligned(lines)


def aligned(lines: list[list[str]]) -> str:
    """Cells in columns, to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines)


@app.callback()
def benchmark() -> None:
    """Times what this project is slow at; numbers of one run compare with each other, not with those of another."""


if __name__ == "__main__":
    app()
