"""What the CAM family is compared with: features and gradients by plain hooks, maps by loops over the papers' sums, in float64."""

import torch
from torch import nn


class Net(nn.Module):
    """Convolutions on images that are not square; the site ``features`` is [batch, 4, 3, 5]."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Tanh())  # both signs, so that every rectification shows
        self.head = nn.Sequential(nn.Conv2d(4, 6, 2), nn.Softplus(), nn.Flatten(), nn.Linear(6 * 2 * 4, 3))

    def forward(self, x):
        return self.head(self.features(x))


class Tokens(nn.Module):
    """A class token and a 2 x 3 grid of patch tokens, mixed by one attention; the site ``block`` is [batch, 7, 4]."""

    def __init__(self):
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 4, 2, 2), nn.Parameter(torch.randn(1, 1, 4))
        self.block, self.mix, self.head = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.MultiheadAttention(4, 1, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        tokens = torch.cat([self.token.expand(len(x), -1, -1), self.patch(x).flatten(2).transpose(1, 2)], 1)
        tokens = self.block(tokens)
        return self.head((tokens + self.mix(tokens, tokens, tokens)[0])[:, 0])


def made(kind=Net, shape=(2, 3, 6, 10)):
    torch.manual_seed(5)
    return kind().double().eval(), torch.randn(*shape, dtype=torch.float64)


def features_and_gradients(model, x, name, target):
    """A, dA and f by a hook of the test's own."""
    kept = []
    hook = model.get_submodule(name).register_forward_hook(lambda m, i, o: (kept.append(o.detach().requires_grad_()), kept[-1])[1])
    score = model(x)[:, target]
    hook.remove()
    return kept[0].detach(), torch.autograd.grad(score.sum(), kept[0])[0], score.detach()


def replaced(model, x, name, features, target):
    """f with features in the place of the module's own."""
    hook = model.get_submodule(name).register_forward_hook(lambda m, i, o: features)
    with torch.no_grad():
        score = model(x)[:, target]
    hook.remove()
    return score


def map_of(a, g, a0, *, weights="own", rectify=True):
    """sum_k w_kp (A_kp - A0_kp) position by position; ``weights``: "own" gradient, its "mean" over positions, or its "positive" part."""
    batch, channels, height, width = a.shape
    found = torch.zeros(batch, height, width, dtype=torch.float64)
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                total = 0.0
                for k in range(channels):
                    w = g[b, k].sum() / (height * width) if weights == "mean" else g[b, k, y, x]
                    w = max(w, torch.zeros(())) if weights == "positive" else w
                    total += float(w * (a[b, k, y, x] - a0[b, k, y, x]))
                found[b, y, x] = max(total, 0.0) if rectify else total
    return found
