"""Options of the runtime: what can be had is had, and the rest is refused with a remedy."""

import os
import signal
import time
from functools import partial
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
        (Runtime("cpu", "8"), "precision 8: unknown; choose auto, 32-true"),
        (Runtime("cpu", strategy="fsdp"), "strategy fsdp: unknown; choose auto, ddp, ddp-gloo or ddp-nccl"),
        (Runtime("cpu", strategy="ddp-nccl"), "needs CUDA devices, `device` is cpu; use ddp-gloo"),
        (Runtime("cpu", "16-mixed"), "precision 16-mixed: needs a GPU; use 32-true or bf16-mixed"),
        (Runtime("cpu", devices=5000), "devices 5000: there are only"),
        (Runtime("cpu", devices=0), "devices 0: counts from 1"),
    ],
)
def test_what_cannot_be_had_is_refused(wanted, texts):
    with pytest.raises(ValueError) as caught:
        check_runtime(wanted)
    assert texts in str(caught.value)


def test_compiling_on_the_cpu_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(runtime.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="compile: needs a C\\+\\+ compiler"):
        check_runtime(Runtime("cpu", compile=True))


def test_launcher_and_options_must_agree(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="a launcher started 4 processes, but `devices` 1 times `num_nodes` 1 is 1"):
        check_runtime(Runtime("cpu"))


def test_counts_that_cannot_be_shared_out_are_refused():
    check_shares("viscoin", Runtime(devices=2), 2, batch_size=8, generated=0)
    with pytest.raises(ValueError, match=r"viscoin.batch_size 6: does not .* 2 dev.* times 2 parts .* multiple of 4"):
        check_shares("viscoin", Runtime(devices=2), 2, batch_size=6)
    with pytest.raises(ValueError, match=r"viscoin.generated 3: does not .* 2 devices .*; choose a multiple of 2"):
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


@pytest.mark.parametrize("well", [0, 128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGUSR1])
def test_child_that_a_signal_stopped_is_no_failure(monkeypatch, well):
    """It has saved, and its parent may take its time to end as well."""
    monkeypatch.setattr(runtime.time, "sleep", lambda seconds: None)
    codes = [iter([None, well, well, well]), iter([None, None, None, -signal.SIGKILL])]
    children = [SimpleNamespace(poll=partial(next, of_one)) for of_one in codes]
    assert runtime._wait_for_failure(children) == "-9"
    assert all(next(of_one, None) is None for of_one in codes)  # it looked at all of them


def test_process_ends_when_the_one_that_started_it_is_gone(monkeypatch):
    monkeypatch.setattr(runtime, "GRACE", 0)
    read, write = os.pipe()
    parent = os.fork()
    if not parent:
        if not os.fork():
            try:
                runtime._watch_parent()
                os.write(write, b"up ")
                time.sleep(60)
                os.write(write, b"still there")
            finally:
                os._exit(0)
        time.sleep(60)
        os._exit(0)
    os.close(write)
    assert os.read(read, 3) == b"up "
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert os.read(read, 100) == b""  # the end of the last one that could write
    os.close(read)
