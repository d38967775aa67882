"""What processes that train together share, over torch.distributed; one process alone changes nothing here.

No wrapper around the modules: gradients are averaged once per optimiser step, which works with double backward.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Number of processes; 1 unless torch.distributed is initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of a tensor of the same shape in each process, in all of them; without gradient."""
    if world_size() == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def gather(x: Tensor) -> Tensor:
    """(B, ...) of each process -> (B * processes, ...), the same in all of them; without gradient."""
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


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
