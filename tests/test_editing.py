"""Edits of concept maps by hand, and the length that is read back best."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from toy_ensemble import ToyEnsemble, quadrants, toy_dataset

from viscoin.attribution.concepts import amplification_change
from viscoin.attribution.explained import Explained
from viscoin.attribution.targets import ConceptActivation
from viscoin.models import editing
from viscoin.models.directions import ConceptDirections
from viscoin.models.ensemble import Encoding
from viscoin.testing import consistency
from viscoin.testing.truth.localisation import edit_change

OPPOSITES = [2, None, 0, None]  # concepts 0 and 2 are two signs of one direction


def usual() -> ConceptDirections:
    found = ConceptDirections(4, (), 0)
    found.scale.copy_(torch.tensor([0.5, 1.0, 0.5, 0.8]))
    found.strong.copy_(torch.tensor([0.4, 0.8, 0.2, 0.6]))
    found.templates.copy_(found.strong[:, None, None] * torch.tensor([0.25, 1.0, 0.5])[:, None])
    found.correlation.copy_(torch.eye(4))
    found.correlation[0, 1] = found.correlation[1, 0] = 0.5
    return found


class Operated(ToyEnsemble):
    """A change of concept 0 by more than `most` is drawn as a change of concept 3 as well, `leak` times as large."""

    def __init__(self, directions: ConceptDirections | None = None, most: float = 9.0, leak: float = 0.0) -> None:
        super().__init__()
        self.concept_extractor = nn.Module()
        self.concept_extractor.opposites = lambda: OPPOSITES
        self.generator = SimpleNamespace(directions=directions)
        self.most, self.leak = most, leak

    def edit(self, code: Encoding, concept_maps: Tensor, noise_mode: str = "const") -> Tensor:
        leaked = concept_maps.clone()
        change = (concept_maps - code.concept_maps)[:, 0].amax((1, 2))
        leaked[:, 3] += (self.leak * (change - self.most).clamp_min(0))[:, None, None]
        return self.decode(leaked, code.support, noise_mode)


def code_of(ensemble: ToyEnsemble, *amounts: list[float]) -> Encoding:
    return ensemble.encode(torch.from_numpy(quadrants(amounts)).permute(0, 3, 1, 2) / 127.5 - 1)


def maps_of(*phi: float) -> Tensor:
    return torch.tensor(phi)[None, :, None, None].expand(1, 4, 3, 3).clone()


def rows(maps: Tensor) -> list[list[float]]:
    """Of the only image, the largest value of each concept's map and its value in the upper left."""
    return torch.stack([maps[0].amax((1, 2)), maps[0, :, 0, 0]], 1).double().round(decimals=4).tolist()


def test_a_concept_is_switched_on_by_its_template_and_its_opposite_goes():
    ensemble, before = Operated(usual()), maps_of(0.1, 0.2, 0.3, 0.4)
    after = editing.switched_on(ensemble, before, 0, 1.5)
    assert rows(after) == [[0.6, 0.15], [0.2, 0.2], [0, 0], [0.4, 0.4]]
    assert rows(editing.switched_on(ensemble, before, 3))[3] == pytest.approx([0.6, 0.15])
    assert (before == maps_of(0.1, 0.2, 0.3, 0.4)).all()  # untouched
    none = editing.switched_on(ensemble, before, 0, 0)
    assert rows(none) == [[0, 0], [0.2, 0.2], [0.3, 0.3], [0.4, 0.4]]  # nothing speaks against 2


def test_a_concept_is_switched_off_and_its_opposite_is_there_instead():
    ensemble, before = Operated(usual()), maps_of(0.1, 0.2, 0.0, 0.4)
    assert rows(editing.switched_off(ensemble, before, 0)) == [[0, 0], [0.2, 0.2], [0.2, 0.05], [0.4, 0.4]]
    assert rows(editing.switched_off(ensemble, before, 1)) == [[0.1, 0.1], [0, 0], [0, 0], [0.4, 0.4]]


def test_swaps():
    ensemble, before = Operated(usual()), maps_of(0.1, 0.2, 0.0, 0.4)
    assert rows(editing.swapped(ensemble, before, 3, 0, 2.0)) == [[0.8, 0.2], [0.2, 0.2], [0, 0], [0, 0]]
    assert rows(editing.swapped(ensemble, before, 0, 2)) == [[0, 0], [0.2, 0.2], [0.2, 0.05], [0.4, 0.4]]


def test_what_is_usual_is_measured_where_there_are_no_directions():
    maps = torch.zeros(100, 2, 3, 3)
    maps[:, 0, 0, 0] = torch.arange(100) / 99
    found = editing.measured(maps)
    assert found.strong.tolist() == pytest.approx([0.9, 0]) and found.scale[0] == pytest.approx(0.975)
    assert found.templates[0, 0, 0] == pytest.approx(0.9) and not found.templates[0, 1:].any()
    assert found.vectors.numel() == 0
    ensemble, before = Operated(), maps_of(0.1, 0.2, 0.3, 0.4)
    for edit in (editing.switched_on, editing.switched_off):
        with pytest.raises(ValueError, match="it does not know what is usual; give `usual`"):
            edit(ensemble, before, 0)
    assert rows(editing.switched_on(ensemble, before, 1, usual=usual()))[1] == pytest.approx([0.8, 0.2])


def test_reading_back_by_hand():
    before, target = torch.tensor([[0.0, 0.2, 0.0, 0.4]]), torch.tensor([[0.4, 0.21, 0.0, 0.4]])
    changed = editing.changed_concepts(before, target, usual())
    assert changed.tolist() == [[True, False, False, False]]  # 0.01 is less than 2 % of 1
    found, unedited = torch.tensor([[0.3, 0.5, 0.1, 0.0]]), torch.tensor([[0.1, 0.2, 0.0, 0.4]])
    result = editing.read_back(found, unedited, target, changed, usual())
    assert result.missed.item() == pytest.approx(0.1 / 0.5)
    # weights: 0.25 for concept 1, which comes with 0, and 1 for the two others
    off = (0.25 * 0.3 / 1.0 + 0.1 / 0.5 + 0.4 / 0.8) / 2.25
    assert result.off_target.item() == pytest.approx(off) and result.cost.item() == pytest.approx(0.2 + 2 * off)


def test_the_length_is_that_at_which_the_edit_shows_best_and_disturbs_least():
    ensemble = Operated(usual(), most=0.2, leak=2.0)
    code = code_of(ensemble, [0.0, 0.2, 0.0, 0.0], [0.4, 0.2, 0.0, 0.0])
    edited = editing.switched_on(ensemble, code.concept_maps, 0)
    drawn = editing.length_by_readback(ensemble, code, edited, (0.25, 0.5, 0.75, 1.0))
    lengths = torch.tensor([0.25, 0.5, 0.75, 1.0])
    missed = (0.4 - 0.4 * lengths) / 0.5
    leaked = 2 * (0.4 * lengths - 0.2).clamp_min(0) / 0.8 / 2.25
    assert drawn.costs[0].tolist() == pytest.approx((missed + 2 * leaked).tolist(), abs=1e-5)
    assert drawn.lengths.tolist() == [0.5, 0.25]  # nothing is to be changed in the second: all are as good
    assert drawn.images[0, 0, 0, 0] == pytest.approx(0.2 * 2 - 1, abs=1e-6) and drawn.images.shape == (2, 3, 8, 8)
    again = editing.length_by_readback(ensemble, code, edited, (0.25, 0.5, 0.75, 1.0))
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))
    with pytest.raises(ValueError, match="`lengths`"):
        editing.length_by_readback(ensemble, code, edited, ())


def test_without_disturbance_the_whole_edit_is_drawn():
    ensemble = Operated()
    code = code_of(ensemble, [0.0, 0.2, 0.0, 0.0])
    edited = editing.switched_on(ensemble, code.concept_maps, 0, usual=usual())
    assert editing.length_by_readback(ensemble, code, edited, usual=usual()).lengths.tolist() == [1]


class Directed(ToyEnsemble):
    """`edit` draws what changed in red as well, which `decode` does not."""

    def edit(self, code: Encoding, concept_maps: Tensor, noise_mode: str = "const") -> Tensor:
        drawn = self.decode(concept_maps, code.support, noise_mode).clone()
        drawn[:, 0] -= (concept_maps - code.concept_maps).abs().amax((1, 2, 3))[:, None, None]
        return drawn


def test_whatever_draws_single_concepts_draws_them_by_their_directions(monkeypatch):
    images = toy_dataset([[0.2, 0.4, 0.8, 0.6]], [0]).batch([0])[0]
    plain, directed = (edit_change(kind(), images, 1, "cpu") for kind in (ToyEnsemble, Directed))
    assert plain[0, -1, -1] == 0 and directed[0, -1, -1] == pytest.approx(0.4 / 3, abs=1e-5)

    def change(ensemble: ToyEnsemble) -> Tensor:
        target = ConceptActivation(ensemble)
        return amplification_change(Explained(target, images, torch.tensor([[1]]), target.observe(images)))

    assert change(Directed())[0, 0].amin() > change(ToyEnsemble())[0, 0].amin() + 0.01
    seen = []
    monkeypatch.setattr(Directed, "edit", lambda self, code, maps: seen.append(maps) or self.decode(maps, code.support))
    values = torch.rand(30, 4, generator=torch.Generator().manual_seed(0)).numpy().round(2)
    dataset = toy_dataset(values, [0] * 30)
    consistency.test_consistency(Directed(), dataset, values, torch.arange(30).numpy(), concepts=1)
    assert seen
