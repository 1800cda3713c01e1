"""Muon and AdamW behind one interface."""

from __future__ import annotations

import torch

from wamkit.training.optim import AdamW, Optimizer, orthogonalise


def test_muon_in_three_shards_gives_what_one_shard_gives():
    """The division into shards changes nothing; fp32 rounding of stacked products aside."""
    weights = []
    for shards in (1, 3):
        torch.manual_seed(0)
        model = torch.nn.Sequential(*(torch.nn.Linear(8, n, bias=False) for n in (8, 8, 32, 32, 8)))
        names = [n for n, _ in model.named_parameters()]
        optimizer = Optimizer(model, lr=0.1, weight_decay=0.0, matrices=names[:4], shards=shards)
        assert len(optimizer.parts) == 1 + shards
        for step in range(3):
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            optimizer.step(0.1)
        weights.append([p.detach().clone() for p in model.parameters()])
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b)


def test_orthogonalise_leaves_singular_vectors_and_evens_singular_values():
    g = torch.Generator().manual_seed(0)
    for shape in ((16, 64), (64, 16), (16, 16)):
        x = torch.randn(3, *shape, generator=g)
        u, _, vh = torch.linalg.svd(x, full_matrices=False)
        core = u.mT @ orthogonalise(x) @ vh.mT
        values = core.diagonal(dim1=-2, dim2=-1)
        torch.testing.assert_close(core, torch.diag_embed(values), atol=1e-3, rtol=0)
        assert values.max() < 1.25 and (values > 0.5).float().mean() > 0.9


def test_scaled_gradients_move_as_gradients_that_were_scaled():
    """Clipping on the optimiser's threads is clipping: the same bits, and `after` is given everything that moved."""
    weights, moved = [], []
    for inside in (True, False):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8, 4))
        optimizer = Optimizer(net, lr=0.1, weight_decay=0.0, matrices=["0.weight"], shards=2)
        for _ in range(2):
            net(torch.ones(2, 3, 3, 3)).square().sum().backward()
            scale = torch.tensor(0.25)
            if not inside:
                torch._foreach_mul_([p.grad for p in net.parameters()], scale)
            optimizer.step(0.1, after=moved.extend, scale=scale if inside else None)
            optimizer.zero_grad()
        weights.append([p.detach() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert len(moved) == 2 * 2 * 4


def test_adamw_updates_the_values_that_the_gradient_means():
    """Torch's fused AdamW on a CPU misreads a contiguous gradient of a channels_last parameter."""
    start, gradient = (torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(2))
    moved = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        p = torch.nn.Parameter(start.clone(memory_format=layout))
        optimizer = AdamW([p], 0.1, fused=True)
        for k in range(3):
            p.grad = gradient * (k + 1)
            optimizer.step()
        assert p.is_contiguous(memory_format=layout)
        moved[layout] = p.detach().contiguous()
    assert torch.allclose(*moved.values(), atol=1e-6)
    assert (moved[torch.channels_last] - start).sign().equal(-gradient.sign())
