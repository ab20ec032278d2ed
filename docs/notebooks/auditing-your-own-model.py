# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Auditing a model of your own
#
# A plain PyTorch network, trained here in a few seconds on photo-digits. zeroline knows nothing about it; nothing is registered or wrapped.

# %%
import torch
from torch import nn

import zeroline as zl
from zeroline import zoo


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.Sequential(nn.AvgPool2d(2), self.stage(3, 16), self.stage(16, 32), self.stage(32, 64))
        self.head = nn.Linear(64, 10)

    def stage(self, given, wide):
        return nn.Sequential(nn.Conv2d(given, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU(), nn.MaxPool2d(2))

    def forward(self, pixels):
        return self.head(self.stages(pixels).amax((2, 3)))


def batch(samples):
    return torch.cat([s.inputs["pixel_values"] for s in samples]), torch.tensor([s.labels[0] for s in samples])


torch.manual_seed(0)
pixels, labels = batch(zoo.scenes("digits-cnn", 1500, seed=5))
model, epochs, size = Small(), 10, 64
optimiser = torch.optim.AdamW(model.parameters())
schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=epochs * -(-len(pixels) // size))
for _ in range(epochs):
    for rows in torch.randperm(len(pixels)).split(size):
        loss = nn.functional.cross_entropy(model(pixels[rows]), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
model.eval()
held_out = zoo.test_set("digits-cnn")
images, truth = batch(held_out)
print(f"right on {(model(images).argmax(1) == truth).float().mean():.0%} of {len(images)} images that it has not seen")

# %% [markdown]
# ## What can be explained: sites
# Names of modules are sites. At a *cut* every path from the input to the output passes: there f with features replaced is f of some input.

# %%
x = images[3:4]
for row in zl.sites(model, x):
    if row.site.count(".") <= 1:
        print(f"{row.site:14} {row.kind:12} {row.shape!s:18} {'a cut' if row.is_cut else 'no cut'}")

# %% [markdown]
# ## From where: baselines
# The model does not say how its pixels were normalised, so `black` needs to be told.

# %%
black = zl.baseline.black(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
neutral = zl.baseline.neutral(zl.baseline.blur(8), low=-1.0, high=1.0)
audit = zl.audit_baseline(model, x, zl.top(), [black, zl.baseline.zeros(), zl.baseline.blur(8), neutral])
print(audit)
print("advice:", audit.advice()[0])

# %% [markdown]
# ## How exact, and where: layers
# One question at the input and after every stage, each with its error.

# %%
layers = zl.layers(model, x, target=zl.top(), baseline=neutral, sites=[None, "stages.1", "stages.2", "stages.3"])
print(layers)

# %% alt="The photograph and the map after each of three stages, from fine to coarse"
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 5, figsize=(13, 3), layout="constrained")
axes[0].imshow(held_out[3].image)
axes[0].set_title("x")
for axis, label in zip(axes[1:], layers.labels):
    heat = layers[label].per_pixel()[0]
    limit = float(heat.abs().max())
    axis.imshow(heat, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axis.set_title(label)
for axis in axes:
    axis.set_axis_off()

# %% [markdown]
# ## Is the explanation one of this model?
# `check_principles` asks, over a labelled set: are the model's outputs untouched, does the evidence follow the score, where does the map point when
# the model is wrong, and what is left of it when the weights are shuffled?

# %%
chosen = range(0, len(held_out), 3)
labelled = zl.LabelledSet(images[list(chosen)], truth[list(chosen)], masks=torch.stack([held_out[i].masks.any(0) for i in chosen]))
print(zl.check_principles("integrated_gradients", model, labelled, site="stages.1", baseline=zl.baseline.zeros(at="input")))

# %% [markdown]
# The same for Grad-CAM, a first-order method with a silent baseline of zero features:

# %%
print(zl.check_principles("grad_cam", model, labelled, site="stages.3", baseline=zl.baseline.zeros()))
