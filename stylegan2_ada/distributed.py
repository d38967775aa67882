"""What processes that train together share, over torch.distributed; one process alone changes nothing here.

No wrapper around the modules: gradients are averaged once per optimiser step, which works with double backward, with
methods other than `forward` and with parameters that only some steps use. A batch is shared out by turns: of W
processes, process r has positions r, r + W, r + 2W, ...
"""

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


def world_size() -> int:
    """Number of processes; 1 unless torch.distributed is initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of a tensor of the same shape in each process, in all of them; without gradient."""
    return x if world_size() == 1 else sum_over_processes(x) / world_size()


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of a tensor of the same shape in each process, in all of them; without gradient."""
    if world_size() == 1:
        return x
    total = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def gather(x: Tensor) -> Tensor:
    """(B, ...) of each process -> (B * processes, ...) in the order of the whole batch, the same in all of them.

    Its gradient is that of the sum of what all processes make of it.
    """
    return x if world_size() == 1 else _Gather.apply(x)


def gather_objects(x: T) -> list[T]:
    """What each process has, by rank, in all of them; anything that can be pickled."""
    if world_size() == 1:
        return [x]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, x)
    return found


def from_first(x: T) -> T:
    """What the first process has, in all of them; anything that can be pickled."""
    if world_size() == 1:
        return x
    found: list[Any] = [x]
    dist.broadcast_object_list(found, src=0)
    return found[0]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.stack(parts, 1).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return sum_over_processes(gradients[0])[rank() :: world_size()]


@torch.no_grad()
def broadcast(module: nn.Module) -> None:
    """Give all processes the parameters and buffers of the first one."""
    if world_size() > 1:
        for value in module.state_dict().values():
            whole = value.contiguous()
            dist.broadcast(whole, src=0)
            value.copy_(whole)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter], replace_non_finite: bool = False) -> None:
    """Replace each gradient by its mean over all processes, in one exchange of one flat tensor.

    Args:
        replace_non_finite: NaN becomes 0 and infinity +-1e5, which float16 needs (ADA paper, Appendix C.1).
    """
    if world_size() == 1 and not replace_non_finite:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    flat = mean_over_processes(torch.cat([gradient.flatten() for gradient in gradients]))
    if replace_non_finite:
        flat = torch.nan_to_num(flat, nan=0.0, posinf=1e5, neginf=-1e5)
    parts = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view(g.shape) for part, g in zip(parts, gradients, strict=True)])


def share_batch_norm(module: nn.Module) -> nn.Module:
    """Let the batch normalisation of all processes together see one batch, as it does with one process.

    torch.nn.SyncBatchNorm does the same on GPUs alone. Does nothing for one process, and to layers that stay in eval
    mode. Weights and names remain as they are.
    """
    if world_size() > 1:
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.forward = _SharedBatchNorm(layer, layer.forward)  # type: ignore[method-assign, assignment]
    return module


class _SharedBatchNorm:
    def __init__(self, layer: nn.BatchNorm2d, alone: Any) -> None:
        self.layer, self.alone = layer, alone

    def __call__(self, x: Tensor) -> Tensor:
        layer = self.layer
        if not layer.training:
            return self.alone(x)
        with torch.autocast(x.device.type, enabled=False):
            wide = x.float()
            own = torch.stack([wide.mean((0, 2, 3)), wide.var((0, 2, 3), unbiased=False)])
            means, variances = gather(own[None]).unbind(1)  # (processes, C) each
            mean = means.mean(0)
            variance = variances.mean(0) + (means - mean).square().mean(0)
            self._track(mean.detach(), variance.detach(), x.numel() // x.shape[1] * world_size())
            scale = (variance + layer.eps).rsqrt()
            shift = -mean * scale
            if layer.affine:
                scale, shift = scale * layer.weight, shift * layer.weight + layer.bias
            y = torch.addcmul(shift[:, None, None], wide, scale[:, None, None]).to(x.dtype)
        for name in ("drop", "act"):  # which timm's BatchNormAct2d has in it
            y = getattr(layer, name, nn.Identity())(y)
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, n: int) -> None:
        layer = self.layer
        if layer.running_mean is None or layer.running_var is None:
            return
        layer.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        momentum = 1 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum  # type: ignore[arg-type]
        layer.running_mean.lerp_(mean, momentum)
        layer.running_var.lerp_(variance * n / max(1, n - 1), momentum)
