"""Deletion and insertion curves against a loop that replaces pixels one order at a time."""

import pytest
import torch
from torch import nn

import zeroline as zl
from methods.cam_reference import made
from zeroline.errors import UsageError


def test_the_curves_are_those_of_a_loop():
    model, x = made()
    maps = torch.randn(2, 3, 5, dtype=torch.float64)
    found = zl.deletion_insertion(model, x, maps, target=1, baseline=zl.baseline.constant(0.3), steps=5)
    x0 = torch.full_like(x, 0.3)
    for b in range(2):
        order = sorted(range(15), key=lambda i: -float(maps[b].flatten()[i]))
        for step in range(6):
            removed = order[: 3 * step]
            deleted, inserted = x[b].clone(), x0[b].clone()
            for i in removed:
                rows, columns = slice(2 * (i // 5), 2 * (i // 5) + 2), slice(2 * (i % 5), 2 * (i % 5) + 2)
                deleted[:, rows, columns], inserted[:, rows, columns] = 0.3, x[b, :, rows, columns]
            with torch.no_grad():
                assert float(found.deletion[b, step]) == pytest.approx(float(model(deleted[None])[0, 1]), abs=1e-9)
                assert float(found.insertion[b, step]) == pytest.approx(float(model(inserted[None])[0, 1]), abs=1e-9)
    assert torch.allclose(found.deletion[:, 0], found.insertion[:, -1])
    assert torch.allclose(found.deletion[:, -1], found.insertion[:, 0])


def test_areas_are_shares_of_the_difference():
    """A linear model: deleting the only pixel that counts first leaves nothing, last leaves all but the last step."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).double()
    with torch.no_grad():
        model[1].weight.zero_()[0, 2] = 3.0
    x = torch.ones(1, 1, 1, 4, dtype=torch.float64)
    first, last = torch.tensor([[[0.0, 0.0, 1.0, 0.0]]]), torch.tensor([[[1.0, 1.0, 0.0, 1.0]]])
    asked = {"target": 0, "baseline": zl.baseline.zeros(), "steps": 4}
    best, worst = (zl.deletion_insertion(model, x, maps, **asked) for maps in (first, last))
    assert best.deletion.tolist() == [[3.0, 0.0, 0.0, 0.0, 0.0]]
    assert worst.deletion.tolist() == [[3.0, 3.0, 3.0, 3.0, 0.0]]
    assert best.area("deletion").tolist() == pytest.approx([0.125])
    assert worst.area("deletion").tolist() == pytest.approx([0.875])
    assert best.area("insertion").tolist() == pytest.approx([0.875])
    assert "areas deletion 0.125, insertion 0.875" in repr(best)


def test_tokens_are_replaced_at_their_embedding():
    torch.manual_seed(0)

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 2)

        def forward(self, ids):
            return self.head(self.embed(ids).sum(1))

    model, ids = Words(), torch.tensor([[1, 2, 3]])
    found = zl.deletion_insertion(
        model, {"ids": ids}, torch.tensor([[0.1, 0.9, 0.5]]), target=1, site="embedding:ids", baseline=zl.baseline.zeros(), steps=3
    )
    with torch.no_grad():
        each = model.embed(ids)[0]
        truth = [each.sum(0), each[[0, 2]].sum(0), each[0], torch.zeros(4)]
        assert torch.allclose(found.deletion[0], torch.stack([model.head(t)[1] for t in truth]).double(), atol=1e-6)


def test_a_map_that_does_not_fit_is_one_clear_error():
    model, x = made()
    for maps, steps, message in ((torch.ones(2, 3, 5), 0, "steps=0 was asked"), (torch.full((2, 3, 5), torch.nan), 4, "hold NaN or infinity")):
        with pytest.raises(UsageError, match=message):
            zl.deletion_insertion(model, x, maps, target=0, baseline=zl.baseline.zeros(), steps=steps)
    with pytest.raises(UsageError, match=r"a map \(2, 7\) does not fit features \(2, 3, 6, 10\)"):
        zl.deletion_insertion(model, x, torch.randn(2, 7), target=0, baseline=zl.baseline.zeros())
