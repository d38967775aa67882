"""Options of the runtime: what can be had is had, and the rest is refused with a remedy."""

from types import SimpleNamespace

import pytest
import torch
from lightning_fabric.plugins.precision import MixedPrecision

from viscoin.training import runtime
from viscoin.training.runtime import (
    Runtime,
    check_runtime,
    check_shares,
    load_scaler,
    scaler_state,
    whole_batch,
)


@pytest.mark.parametrize(
    ("wanted", "texts"),
    [
        (Runtime("cpu", "8"), "--precision '8' is unknown; choose auto, 32-true"),
        (Runtime("cpu", strategy="fsdp"), "--strategy 'fsdp' is unknown; choose auto, ddp, ddp-gloo or ddp-nccl"),
        (Runtime("cpu", strategy="ddp-nccl"), "needs CUDA devices, --device is cpu; use ddp-gloo"),
        (Runtime("cpu", "16-mixed"), "--precision 16-mixed needs a GPU; use 32-true or bf16-mixed"),
        (Runtime("cpu", devices=5000), "--devices 5000: there are only"),
        (Runtime("cpu", devices=0), "--devices 0"),
    ],
)
def test_what_cannot_be_had_is_refused(wanted, texts):
    with pytest.raises(ValueError) as caught:
        check_runtime(wanted)
    assert texts in str(caught.value)


def test_compiling_on_the_cpu_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(runtime.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="--compile needs a C\\+\\+ compiler"):
        check_runtime(Runtime("cpu", compile=True))


def test_launcher_and_options_must_agree(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="a launcher started 4 processes, but --devices 1 times --num-nodes 1 is 1"):
        check_runtime(Runtime("cpu"))


def test_counts_that_cannot_be_shared_out_are_refused():
    check_shares("viscoin", Runtime(devices=2), 2, batch_size=8, generated=0)
    with pytest.raises(ValueError, match=r"--batch-size 6 does not .* 2 devices .* times 2 parts .* multiple of 4"):
        check_shares("viscoin", Runtime(devices=2), 2, batch_size=6)
    with pytest.raises(ValueError, match=r"viscoin.generated = 3 does not .* 2 devices .*; choose a multiple of 2"):
        check_shares("viscoin", Runtime(devices=2), 1, generated=3)


def test_few_images_make_a_smaller_batch_that_divides():
    assert whole_batch(64, 1000, 4) == 64
    assert whole_batch(64, 30, 4) == 28
    with pytest.raises(ValueError, match="3 training images are too few for 4 shares"):
        whole_batch(64, 3, 4)


def test_loss_scale_of_float16_is_kept_and_others_have_none():
    def fabric(kind: type, scale: float | None = None) -> SimpleNamespace:
        scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
        precision = kind("16-mixed", "cpu", scaler) if scaler else kind("bf16-mixed", "cpu")
        return SimpleNamespace(strategy=SimpleNamespace(precision=precision))

    small, large, none = fabric(MixedPrecision, 8.0), fabric(MixedPrecision, 64.0), fabric(MixedPrecision)
    load_scaler(large, scaler_state(small))
    assert scaler_state(large)["scale"] == 8.0
    assert scaler_state(none) == {}
    load_scaler(large, scaler_state(none))  # of a run in bfloat16
    load_scaler(none, scaler_state(small))  # and the other way round
    assert scaler_state(large)["scale"] == 8.0
