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
# # Why a baseline matters
#
# A Vision Transformer says *two* to a photograph. Four explanations of that answer, by one method, each exact to within 1 %, each another map.

# %%
import matplotlib.pyplot as plt
import torch

import zeroline as zl
from zeroline import zoo

model = zoo.load("digits-vit")
sample = zoo.samples("digits-vit")[5]
digits = [model.config.id2label[i] for i in range(10)]
sample.caption, digits[int(model(**sample.inputs).logits.argmax())]

# %% [markdown]
# Four ways to say what counts as nothing: a black image, the image's own mean colour, the image behind a blur, and an image that was looked for
# because the model has no opinion on it.

# %%
baselines = {
    "black": zl.baseline.black(),
    "mean": zl.baseline.mean(),
    "blur": zl.baseline.blur(8),
    "neutral": zl.baseline.neutral(zl.baseline.blur(8)),
}
records = {name: zl.integrated_gradients(model, sample.inputs, target=zl.top(), baseline=baseline) for name, baseline in baselines.items()}
for name, a in records.items():
    print(
        f"{name:8} f(x) {float(a.output):6.2f}   f(baseline) {float(a.baseline_output):6.2f}   difference {float(a.difference):6.2f}"
        f"   error {float(a.error):+.3f} ({float(a.relative_error):.1%})"
    )

# %% [markdown]
# f(x) is the same, the errors are small throughout, and the *differences* are not alike: from black and from the mean colour less than half of the
# score is left to explain, since the logit of *two* is high before the model is shown a two.

# %% alt="The photograph of a green two, and its maps from black, mean, blur and neutral: the spots lie in different places along the digit"
figure, axes = plt.subplots(1, 5, figsize=(13, 3), layout="constrained")
axes[0].imshow(sample.image)
axes[0].set_title("x")
for axis, (name, a) in zip(axes[1:], records.items()):
    heat = 16 * torch.nn.functional.avg_pool2d(a.per_pixel()[None], 4)[0, 0]  # sums over 4 x 4 pixels
    limit = float(heat.abs().max())
    axis.imshow(heat, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axis.set_title(f"{name}: {float(a.difference):.2f}")
for axis in axes:
    axis.set_axis_off()

# %% [markdown]
# How alike are the maps? Pearson's correlation over the pixels:

# %%
maps = torch.stack([a.per_pixel()[0].flatten() for a in records.values()])
print("         ", "  ".join(f"{name:>7}" for name in records))
for name, row in zip(records, torch.corrcoef(maps).tolist()):
    print(f"{name:9}", "  ".join(f"{value:+7.2f}" for value in row))

# %% [markdown]
# Which to use? Ask what the model believes on each, before you look at a map:

# %%
audit = zl.audit_baseline(model, sample.inputs, zl.top(), list(baselines.values()))
for name in audit.baselines:
    print(f"{name}: {audit.verdict(name)}")
print("\nadvice:", *audit.advice(), sep="\n  ")

# %% [markdown]
# What stays true from every baseline: the values add up to f(x) less f there. What a map means without its baseline: not known.
# [Which baseline, and which layer?](../baselines.md) says more, and
# [the study](../attribution-error.md) what ten baselines do over 200 images.
