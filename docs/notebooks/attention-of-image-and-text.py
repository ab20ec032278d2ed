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
# # Reading attention in a model of image and text
#
# `digits-vqa` is a LXMERT: words attend to words, regions to regions, and in its cross layers each to the other. It answers questions about
# photographs. Three ways to ask it where an answer comes from.

# %%
import matplotlib.pyplot as plt
import torch

import zeroline as zl
from zeroline import zoo

model, tokenizer = zoo.load("digits-vqa"), zoo.tokenizer("digits-vqa")
sample = zoo.samples("digits-vqa")[12]
words = tokenizer.convert_ids_to_tokens(sample.inputs["input_ids"][0].tolist())
scores = model(**sample.inputs).question_answering_score[0]
answer = model.config.id2label[int(scores.argmax())]
print(sample.question.text, "->", answer)

# %% [markdown]
# ## The attentions that there are
# `zl.trace` finds them in the running model. A call is *heterogenous* where its queries and keys come from different sources.

# %%
found = zl.trace(model, sample.inputs)
for call in found.calls:
    if call.kind == "heterogenous":
        print(call.name, call.queries, "ask", call.keys)
print(len(found.calls), "in all")

# %% [markdown]
# ## Attend: which words and regions, through all layers
# Relevance has no unit and adds up to nothing: it has no attribution error.

# %% alt="The photograph with a one and a nine; relevance on the 8 x 8 regions; relevance per word as bars, the word nine among the longest"
relevance = zl.attention_relevance(model, sample.inputs, target=answer)
regions = relevance.grid("visual_feats")[0]
over_words = relevance.by_source["input_ids"][0]
figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
axes[0].imshow(sample.image)
axes[1].imshow(regions, cmap="Reds", vmin=0)
axes[1].set_title("regions")
shown = [i for i, word in enumerate(words) if word not in ("[CLS]", "[SEP]", "[PAD]")]
axes[2].barh([words[i] for i in shown], over_words[shown])
axes[2].invert_yaxis()
axes[2].set_title("words")
axes[2].set_xticks([])
for axis in axes[:2]:
    axis.set_axis_off()

# %% [markdown]
# ## Ground: which word stands on which region
# The same relevance, shared out by the last word that its path passed.

# %% alt="Two heat maps over 8 x 8 regions, one per word: the word nine lies on the nine at the lower left"
grounding = zl.ground(model, sample.inputs, target=answer, words={"input_ids": words})
coupling = grounding.grid("coupling")[0]
figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
axes[0].imshow(sample.image)
for axis, word in zip(axes[1:], ("color", "nine")):
    axis.imshow(coupling[words.index(word)], cmap="Reds", vmin=0)
    axis.set_title(word)
for axis in axes:
    axis.set_axis_off()

# %%
total = grounding.matrix.sum(1) + grounding.direct
print("adds up to the relevance of the regions:", bool(torch.allclose(total, grounding.relevance, atol=1e-6)))

# %% [markdown]
# ## Logic: what does the answer need?
# Where attention goes is not yet what is needed. Here parts are taken away, in all combinations, and what they add *together* is read off. This
# one is in units of the answer's logit, and has an error.

# %%
boxes = {"left": (0.22, 0.56, 0.56, 1.0), "right": (0.56, 0.43, 0.93, 1.0)}
players = zl.players.words(sample.inputs, tokenizer, ["color", "nine"]) + zl.players.regions(model, sample.inputs, boxes)
logic = zl.logic(model, sample.inputs, target=answer, players=players)
print(logic.reading[0])
print(f"difference {float(logic.difference):.2f}, error {float(logic.error):.0e}")
for name, value in logic.largest(count=5):
    print(f"  {name:20} {value:+.2f}")

# %% [markdown]
# *NOT right* is sound: with the other digit gone, the left one is the only one, and the word is not needed to tell which is meant.
# [Heterogenous attention](../heterogenous.md) defines the numbers, [how often it is right](../heterogenous-truth.md) checks them on 400 questions.
