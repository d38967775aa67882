"""Methods by Captum (extra `attribution`), each with a check that it means what it says for the model."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from viscoin.attribution.gradients import TOLERANCE, check_relu, score_change
from viscoin.attribution.question import DoesNotHold, Found, Question
from viscoin.errors import Refused


class _Score(nn.Module):
    """The explained score as a network that Captum can hook: images (N, 3, H, W), rows (N,) -> (N,)."""

    def __init__(self, question: Question) -> None:
        super().__init__()
        self.model, self.question = question.target.model, question

    def forward(self, images: Tensor, rows: Tensor) -> Tensor:
        return self.question.score(images, rows)


def deeplift(question: Question) -> Found:
    """DeepLIFT's rescale rule, summed over colours (Shrikumar et al. 2017, arXiv 1704.02685, Eqs. 6 to 8).

    Captum replaces ReLU and pooling that are modules, and takes the gradient for all else, without a word; such
    networks are refused, and so is any map that does not add up to the change of the score.
    """
    captum = _captum()
    check_relu(question, reused=False)
    for module in question.target.model.modules():  # of a twin
        if isinstance(module, nn.ReLU):
            module.inplace = False
    start = question.start()
    method = captum.DeepLift(_Score(question))
    question.passes.backwards += len(start)
    with torch.enable_grad():
        images = question.images.detach().requires_grad_()
        # images and baselines pass together, so the rows of both are needed
        found = method.attribute(images, start, additional_forward_args=(question.every,)).detach()
    heat, change = found.sum(1), score_change(question, start)
    gap = heat.sum((1, 2)) - change
    wrong = gap.abs() > TOLERANCE * change.abs().clamp(min=1)
    if wrong.any():
        which = int(wrong.nonzero()[0, 0])
        total, wanted = float(heat[which].sum()), float(change[which])
        raise DoesNotHold(f"its map adds up to {total:.3g}, not to the change of the score, {wanted:.3g}")
    return Found(heat, gap)


def kernel_shap(question: Question) -> Found:
    """Shapley values of square cells by weighted regression (Lundberg & Lee 2017, arXiv 1705.07874, Sec. 4.1).

    The value of a cell is spread evenly over its pixels, so that the map adds up to the change of the score.
    """
    captum, cells, n = _captum(), question.options["cells"], question.options["samples"]
    if cells > min(question.size):
        raise Refused("cells", cells, f"more than pixels on a side, {min(question.size)}", "give fewer")
    if n <= cells * cells:
        raise Refused("samples", n, f"too few for {cells}x{cells} cells", f"give more than {cells * cells}")
    mask, start = _cells(question.size, cells).to(question.images.device), question.start()
    heats = []
    for row in question.every:
        method = _seeded(captum, question, int(row))
        values = method.attribute(
            question.images[row : row + 1], start[row : row + 1], feature_mask=mask[None, None].expand(1, 3, -1, -1),
            additional_forward_args=(row[None],), n_samples=n, perturbations_per_eval=question.batch_size,
        )  # fmt: skip
        heats.append(values[0, 0].float() / torch.bincount(mask.flatten())[mask])
    heat = torch.stack(heats).detach()
    return Found(heat, heat.sum((1, 2)) - score_change(question, start))


def _cells(size: torch.Size, cells: int) -> Tensor:
    """(H, W) numbers of square cells, row by row."""
    rows, columns = (torch.arange(length) * cells // length for length in size)
    return rows[:, None] * cells + columns


def _seeded(captum: Any, question: Question, row: int) -> Any:
    """Captum's KernelShap, whose coalitions come from the seed, not from the random numbers that all threads share."""

    class Seeded(captum.KernelShap):  # type: ignore[misc]  # of a library that is imported here alone
        def kernel_shap_perturb_generator(self, _image: object, **known: Any) -> Iterator[Tensor]:
            features, generator = known["num_interp_features"], question.generator(row, 0)
            device = question.images.device
            yield torch.ones(1, features, device=device, dtype=torch.long)
            yield torch.zeros(1, features, device=device, dtype=torch.long)
            chances = known["num_select_distribution"].probs.double().cpu().numpy()
            chances = chances / chances.sum()
            while True:
                chosen = generator.permutation(features)[: generator.choice(len(chances), p=chances)]
                coalition = torch.zeros(1, features, device=device, dtype=torch.long)
                coalition[0, torch.from_numpy(chosen).to(device)] = 1
                yield coalition

    return Seeded(_Score(question))


def _captum() -> Any:
    try:
        import captum.attr
    except ImportError as error:
        raise Refused(
            "method",
            None,
            "DeepLIFT and Kernel SHAP need captum",
            'install it with: pip install "viscoin[attribution]"',
        ) from error
    return captum.attr
