"""Parts of a model for use without this project: ONNX, TorchScript or plain weights, compared with PyTorch first.

Each file says in its metadata, as JSON under "viscoin", what goes in, what comes out and what the classes are called.
"""

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from viscoin.attribution.explained_classifier import ONE_PASS, ExplainedClassifier
from viscoin.attribution.methods import METHODS
from viscoin.config import DatasetConfig
from viscoin.datasets import DRAWN, load_dataset
from viscoin.datasets.download import no_downloads
from viscoin.errors import Refused, reason_of
from viscoin.files import atomic_path
from viscoin.models.files import LoadedModel
from viscoin.models.portable import ClassifierPart, Part, Port, take_part

logger = logging.getLogger(__name__)

FORMAT = "viscoin-export/1"
SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "safetensors": ".safetensors"}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Largest difference from PyTorch, as a part of the largest value: sums in another order, or rounded weights.
TOLERANCES = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.1}
OPSETS = range(18, 24)  # from the oldest that PyTorch writes without a conversion
DEFAULT_OPSET = OPSETS[0]  # that the most programs read
SAMPLES = 8  # in each comparison, beside a batch of one
SMALL = 1024  # values that are computed before writing; larger ones may need more room than what they come from

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]


class Difference(NamedTuple):
    """Of one output from that of PyTorch."""

    absolute: float
    largest: float  # absolute value that PyTorch computes

    @property
    def relative(self) -> float:
        """To the largest value, or to 1 where all are smaller."""
        return self.absolute / max(1.0, self.largest)


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how far it is from PyTorch: by kind of input, then by output."""

    path: Path
    to: str
    part: Part
    differences: Mapping[str, Mapping[str, Difference]]
    tolerance: float

    @property
    def largest(self) -> float:
        """Largest relative difference of all."""
        return max(one.relative for outputs in self.differences.values() for one in outputs.values())


def export_model(
    loaded: LoadedModel,
    to: str,
    output: Path,
    images: Tensor,
    *,
    images_are: str = "images",
    part: str | None = None,
    with_map: str | None = None,
    noise_mode: str = "const",
    truncation_psi: float = 1,
    dtype: str = "float32",
    opset: int | None = None,
    tolerance: float | None = None,
) -> Exported:
    """Write a part of a model to a file, which gets its name only if it computes what PyTorch computes.

    It is compared on random inputs and on images, eight at once and one alone. An existing file is replaced at once,
    when the new one is complete.

    Args:
        to: "onnx", "torchscript" or "safetensors" (weights alone, by the names that others use).
        images: (B, 3, H, W) in [-1, 1], real ones; parts that generate images get what the ensemble makes of them.
        images_are: what to call these images.
        part, noise_mode, truncation_psi: see `take_part`.
        with_map: of the part "classifier": the method of a map as second output, one of `ONE_PASS`.
        dtype: of plain weights: "float32", "float16" or "bfloat16".
        opset: version of the ONNX operators; None for 18.
        tolerance: largest difference, as a part of the largest value of an output; None for 1e-4, more if `dtype`
            rounds.

    Raises:
        ValueError: what cannot be exported, or only wrongly, or not to that place; the file is not written.
    """
    _check_options(to, dtype, opset, truncation_psi, noise_mode)
    _check_output(output, to, loaded.path)
    chosen = take_part(loaded, part, noise_mode, truncation_psi)
    if with_map is not None:
        chosen = _with_map(chosen, with_map, to)
    samples = _samples(loaded, chosen, images, images_are)
    tolerance = TOLERANCES[dtype] if tolerance is None else tolerance
    opset = DEFAULT_OPSET if opset is None else opset
    text = json.dumps(_metadata(loaded, chosen, to, noise_mode, truncation_psi), ensure_ascii=False)
    example = [x[:2] for x in next(iter(samples.values()))]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(output) as partial:
            if to == "onnx":
                run = _to_onnx(chosen, example, partial, text, opset)
            elif to == "torchscript":
                run = _to_torchscript(chosen, example, partial, text)
            else:
                run = _to_safetensors(chosen, partial, text, DTYPES[dtype])
            done = Exported(output, to, chosen, _compare(chosen, run, samples), tolerance)
            _check_differences(done)
    except OSError as error:
        raise Refused("output", output, f"cannot write there ({reason_of(error)})") from error
    return done


def images_for_check(
    loaded: LoadedModel, dataset: str | None = None, dataset_path: str | None = None
) -> tuple[Tensor, str]:
    """Eight test images (8, 3, H, W) in [-1, 1] of the side that a model was made for, and what they are.

    Args:
        dataset: a name, folder or zip; None takes that of the model where its files are there, without a download, and
            the built-in birds where not.
    """
    saved = {**loaded.recipe["dataset"], "skip_bad_files": True}
    if dataset is not None:
        own = saved if dataset == saved["name"] else {"resolution": saved["resolution"]}
        return _test_images(DatasetConfig.model_validate({**own, "name": dataset, "path": dataset_path}))
    try:
        with no_downloads():
            return _test_images(DatasetConfig.model_validate(saved))
    except (ValueError, OSError):
        logger.info("the images of dataset %s are not here; comparing on the built-in birds", saved["name"])
    return _test_images(DatasetConfig(name="birds", resolution=saved["resolution"]))


def _test_images(config: DatasetConfig) -> tuple[Tensor, str]:
    if config.name in DRAWN:
        config = config.model_copy(update={"test": SAMPLES})
    images = load_dataset(config.name, "test", config, labelled=False)
    return images.batch(np.linspace(0, len(images) - 1, SAMPLES).astype(int))[0], f"test images of {config.name}"


def usage(done: Exported) -> str:
    """A few lines of Python that use an exported file."""
    names, path = ", ".join(port.name for port in done.part.outputs), json.dumps(str(done.path))
    inputs = [port.name for port in done.part.inputs]
    if done.to == "onnx":
        feeds = ", ".join(f'"{name}": {name}' for name in inputs)
        return (
            f"import json, onnxruntime\n"
            f"session = onnxruntime.InferenceSession({path})\n"
            f'about = json.loads(session.get_modelmeta().custom_metadata_map["viscoin"])\n'
            f"[{names}] = session.run(None, {{{feeds}}})"
        )
    if done.to == "torchscript":
        return (
            f"import json, torch\n"
            f'files = {{"viscoin": ""}}\n'
            f"part = torch.jit.load({path}, _extra_files=files)\n"
            f'about = json.loads(files["viscoin"])\n'
            f"[{names}] = part({', '.join(inputs)})"
        )
    return (
        f"import json\n"
        f"from safetensors import safe_open\n"
        f'with safe_open({path}, "pt") as file:\n'
        f'    about = json.loads(file.metadata()["viscoin"])\n'
        f"    weights = {{name: file.get_tensor(name) for name in file.keys()}}"
    )


# --- what is asked for


def _check_options(to: str, dtype: str, opset: int | None, truncation_psi: float, noise_mode: str) -> None:
    if to not in SUFFIXES:
        raise Refused("to", to, "unknown format", f"choose {', '.join(SUFFIXES)}")
    if dtype not in DTYPES:
        raise Refused("dtype", dtype, "unknown", f"choose {', '.join(DTYPES)}")
    if dtype != "float32" and to != "safetensors":
        raise Refused("dtype", dtype, f"only plain weights are rounded (`to` safetensors); {to} stays float32")
    if opset is not None and to != "onnx":
        raise Refused("opset", opset, f"only ONNX has operator sets, {to} has none", "leave it out")
    if opset is not None and opset not in OPSETS:
        raise Refused("opset", opset, f"PyTorch writes {OPSETS[0]} to {OPSETS[-1]}")
    if to == "safetensors" and truncation_psi != 1:
        raise Refused("truncation_psi", truncation_psi, "plain weights do not truncate", "leave it out")
    if to == "safetensors" and noise_mode != "const":
        raise Refused("noise_mode", noise_mode, "plain weights do not record how noise is used", "leave it out")
    if to == "onnx":
        onnx_packages()


def onnx_packages() -> tuple[Any, Any, Any]:
    """onnx, onnxruntime and onnxscript; ValueError where the extra `export` is not installed."""
    try:
        import onnx
        import onnxruntime
        import onnxscript.optimizer
    except ModuleNotFoundError as error:
        remedy = "install it by: pip install viscoin[export]"
        raise Refused("to", "onnx", f"needs the package {error.name}", remedy) from error
    return onnx, onnxruntime, onnxscript


def _check_output(output: Path, to: str, source: Path) -> None:
    if output.suffix != SUFFIXES[to]:
        raise Refused("output", output, f"a file for `to` {to} ends in {SUFFIXES[to]}")
    if output.is_dir():
        raise Refused("output", output, "is a folder", "name a file in it")
    if output.exists() and output.samefile(source):
        raise Refused("output", output, "is the model itself", "choose another name")


def _with_map(part: Part, method: str, to: str) -> Part:
    """The classifier with a map as second output."""
    if not isinstance(part.module, ClassifierPart):
        raise Refused("with_map", method, f"is for part 'classifier', not {part.name!r}", "choose that part")
    if to == "safetensors":
        raise Refused("with_map", method, "plain weights compute no map", "export to onnx or torchscript")
    if method not in ONE_PASS:
        raise Refused("with_map", method, "is no map of one forward pass", f"choose one of: {', '.join(ONE_PASS)}")
    side, title = part.inputs[0].shape[-1], METHODS[method].title
    of = "the class with the largest logit" if method == "cam" else "no class in particular"
    return replace(
        part,
        description=f"{part.description} and maps by {title}",
        module=ExplainedClassifier(part.module.classifier, method),
        outputs=(*part.outputs, Port("maps", (side, side), f"{title}, of {of}; not normalised")),
    )


def _metadata(loaded: LoadedModel, part: Part, to: str, noise_mode: str, truncation_psi: float) -> dict[str, Any]:
    options = {"noise_mode": noise_mode, "truncation_psi": truncation_psi}
    about = {
        "format": FORMAT,
        "part": part.name,
        "description": part.description,
        "inputs": [_described(port) for port in part.inputs],
        "outputs": [_described(port) for port in part.outputs],
        "dataset": Path(loaded.metadata["dataset"]).name,  # a folder may be private
        "class_names": loaded.class_names,
        "architecture": part.architecture,
        "trained_with": loaded.metadata.get("versions", {}),
        "exported_with": _versions("viscoin", "torch", "timm", *(("onnx", "onnxscript") if to == "onnx" else ())),
        "revision": loaded.metadata.get("revision", "unknown"),
        **({"origin": loaded.metadata["origin"]} if "origin" in loaded.metadata else {}),
        **({key: options[key] for key in part.options} if to != "safetensors" else {}),
    }
    if loaded.kind == "viscoin":
        about["n_concepts"] = loaded.model.n_concepts
    if "classifier" in part.architecture:
        f = loaded.model if loaded.kind == "classifier" else loaded.model.classifier
        inside, mean, std = to != "safetensors", list(f.mean), list(f.std)
        about["normalisation"] = {"inside": inside, "mean": mean, "std": std, "of": "(images + 1) / 2"}
        if f.input_size != f.resolution:
            about["resizing"] = {"inside": inside, "to": f.input_size, "interpolation": f.interpolation}
    return about


def _described(port: Port) -> dict[str, Any]:
    return {"name": port.name, "dtype": "float32", "shape": ["batch", *port.shape], "meaning": port.meaning}


def _versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


# --- the three kinds of files; each is written, opened again and returned as a function


def _to_onnx(part: Part, example: Sequence[Tensor], path: Path, about: str, opset: int) -> Run:
    onnx, onnxruntime, onnxscript = onnx_packages()
    batch = torch.export.Dim("batch")
    with _explained(part, "onnx"):
        program = torch.onnx.export(
            part.module,
            tuple(example),
            input_names=[port.name for port in part.inputs],
            output_names=[port.name for port in part.outputs],
            dynamic_shapes=tuple({0: batch} for _ in example),
            opset_version=opset,
            dynamo=True,
            optimize=False,  # all of it takes an added 1e-8 for 0, and then 0 scaled to unit length is no number
            verbose=False,
        )
        if program is None:
            raise RuntimeError("torch.onnx.export returned nothing")
        onnxscript.optimizer.fold_constants(program.model, output_size_limit=SMALL)
        onnxscript.optimizer.remove_unused_nodes(program.model)
        model = program.model_proto
        written = {entry.domain: entry.version for entry in model.opset_import}.get("")
        if written != opset:
            raise RuntimeError(f"operator set {written} was written instead of {opset}")
        for node in model.graph.node:
            del node.metadata_props[:]  # lines of code, with the folders of this machine
        model.doc_string = part.description
        onnx.helper.set_model_props(model, {"viscoin": about})
        onnx.checker.check_model(model)
        data = model.SerializeToString()  # fails from 2 GB on
    path.write_bytes(data)
    with _explained(part, "onnx"):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [port.name for port in part.inputs]

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        with _explained(part, "onnx"):
            outputs = session.run(None, {name: x.contiguous().numpy() for name, x in zip(names, inputs)})
        return [torch.from_numpy(x) for x in outputs]

    return run


def _to_torchscript(part: Part, example: Sequence[Tensor], path: Path, about: str) -> Run:
    with _explained(part, "torchscript"), torch.no_grad():
        traced = torch.jit.trace(part.module, tuple(example), check_trace=False)
        data = traced.save_to_buffer(_extra_files={"viscoin": about})
    path.write_bytes(data)
    with _explained(part, "torchscript"):
        loaded = torch.jit.load(path)

    def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        with _explained(part, "torchscript"), torch.no_grad():
            return loaded(*inputs)

    return run


def _to_safetensors(part: Part, path: Path, about: str, dtype: torch.dtype) -> Run:
    state = part.module.state_dict()
    stored_as = {key: dtype if value.is_floating_point() else value.dtype for key, value in state.items()}
    weights = {part.weight_names(key): value.to(stored_as[key]).contiguous() for key, value in state.items()}
    path.write_bytes(save(weights, {"viscoin": about}))
    stored, module = load_file(path), copy.deepcopy(part.module)
    module.load_state_dict({key: stored[part.weight_names(key)] for key in module.state_dict()})

    def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        with torch.no_grad():
            return module(*inputs)

    return run


@contextmanager
def _explained(part: Part, to: str) -> Iterator[None]:
    """Say of any failure of a library what was tried and what else there is; keep its warnings to itself."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except OSError:
        raise
    except Exception as error:  # exporters have dozens without a common parent
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0][:200]
        backbone = part.architecture.get("classifier", {}).get("backbone")
        of = f" with backbone {backbone!r}" if backbone else ""
        others = " or ".join(other for other in SUFFIXES if other != to)
        raise Refused(
            "to", to, f"part {part.name!r}{of} cannot be exported to it ({reason})", f"try {others}"
        ) from error


# --- comparison


def _samples(loaded: LoadedModel, part: Part, images: Tensor, images_are: str) -> dict[str, tuple[Tensor, ...]]:
    """Inputs of a part: random ones, and those that come from images."""
    model, names = loaded.model, [port.name for port in part.inputs]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        random = tuple(_random(port) for port in part.inputs)
        if names == ["images"]:
            return {"random images": random, images_are: (images,)}
        if names == ["ws"] and loaded.kind == "gan":
            z = torch.randn(SAMPLES, model.z_dim)
            c = _one_hot(model.c_dim) if model.c_dim else None
            return {"styles of random z": (model.mapping(z, c),)}
        if names[0] == "z":
            return {"random z": random}
        encoding = model.encode(images)
        found: tuple[Tensor, ...] = (encoding.concept_maps, encoding.support)
        if names == ["ws"]:
            made = tuple(torch.rand_like(x) for x in found)
            return {"random styles": (model.generator.mapping(*made),), images_are: (model.generator.mapping(*found),)}
        if "original" in names:  # edited: the concepts of the image before
            found = (encoding.concept_maps.roll(1, 0), encoding.support, encoding.concept_maps)
        return {"random concepts": random, images_are: found}


def _random(port: Port) -> Tensor:
    """Random values of an input; the last of codes that are scaled to one length is zero, which has none."""
    shape = (SAMPLES, *port.shape)
    if port.name == "c":
        return _one_hot(port.shape[0])
    if port.name == "images":
        return torch.rand(shape) * 2 - 1
    x = torch.randn(shape) if port.name == "z" else torch.rand(shape)
    x[-1] = 0
    return x


def _one_hot(n_classes: int) -> Tensor:
    return torch.eye(n_classes)[torch.randint(n_classes, (SAMPLES,))]


def _compare(part: Part, run: Run, samples: Mapping[str, Sequence[Tensor]]) -> dict[str, dict[str, Difference]]:
    found: dict[str, dict[str, Difference]] = {}
    for kind, inputs in samples.items():
        batches = [list(inputs), [x[:1] for x in inputs]]
        with torch.no_grad():
            wanted = [part.module(*batch) for batch in batches]
        got = [run(batch) for batch in batches]
        found[kind] = {
            port.name: _difference(port.name, [outputs[i] for outputs in wanted], [outputs[i] for outputs in got])
            for i, port in enumerate(part.outputs)
        }
    return found


def _difference(name: str, wanted: Sequence[Tensor], got: Sequence[Tensor]) -> Difference:
    for a, b in zip(wanted, got):
        if a.shape != b.shape:
            raise ValueError(f"{name} has shape {tuple(b.shape)} in the file, {tuple(a.shape)} in PyTorch")
    absolute = torch.stack([(a - b).abs().max() for a, b in zip(wanted, got)]).max()  # unlike max(), keeps NaN
    return Difference(float(absolute), max(float(x.abs().max()) for x in wanted))


def _check_differences(done: Exported) -> None:
    for kind, outputs in done.differences.items():
        for name, difference in outputs.items():
            if not difference.relative <= done.tolerance:  # nor if it is no number
                raise Refused(
                    "to", done.to,
                    f"{name} differs from PyTorch by {difference.absolute:.2g} on {kind}, where values "
                    f"reach {difference.largest:.3g}; a part of {difference.relative:.1e} of that is more than "
                    f"`tolerance` {done.tolerance:g}, so {done.path} was not written",
                    f"try {' or '.join(other for other in SUFFIXES if other != done.to)}",
                )  # fmt: skip
