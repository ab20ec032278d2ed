"""Token rows followed through operations, against which inputs really reach which outputs (the pattern of the Jacobian)."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zeroline as zl
from zeroline.errors import TraceError
from zeroline.model.trace import followed

B, N, D = 2, 6, 4  # samples, tokens, width


def copy_into(x):
    out = torch.zeros(B, N + 1, D)
    out[:, 1:] = x
    return out


def scatter_into(x):
    base = torch.randn(B, 8, D)
    mask = torch.zeros(B, 8, 1, dtype=torch.bool)
    mask[0, [0, 2, 3, 4, 6, 7]] = mask[1, [1, 2, 3, 4, 5, 6]] = True
    return base.masked_scatter(mask.expand(-1, -1, D), x)


# every entry takes [B, N, D] to [B, M, width]
MOVES = {
    "itself": lambda x: x,
    "reversed": lambda x: x.flip(1),
    "rolled": lambda x: x.roll(2, 1),
    "sliced": lambda x: x[:, 1:4],
    "every second": lambda x: x[:, ::2],
    "negative slice": lambda x: x[:, -2:],
    "one row": lambda x: x[:, 3:4],
    "selected": lambda x: x[:, 3][:, None],
    "indexed": lambda x: x[:, [5, 0, 2]],
    "indexed per sample": lambda x: x[torch.arange(B), torch.tensor([1, 4])][:, None],
    "index_select": lambda x: x.index_select(1, torch.tensor([4, 1])),
    "gathered": lambda x: x.gather(1, torch.tensor([[0, 3], [5, 1]])[..., None].expand(-1, -1, D)),
    "concatenated with itself": lambda x: torch.cat([x[:, 3:], x[:, :2]], 1),
    "concatenated with constants": lambda x: torch.cat([torch.zeros(B, 2, D), x], 1),
    "concatenated along the width": lambda x: torch.cat([x, x.flip(1)], 2),
    "split and joined": lambda x: torch.cat(x.split([1, 5], 1)[::-1], 1),
    "chunked": lambda x: x.chunk(3, 1)[1],
    "unbound and stacked": lambda x: torch.stack(x.unbind(1)[::-1], 1),
    "padded": lambda x: F.pad(x, (0, 0, 1, 2)),
    "transposed there and back": lambda x: x.transpose(0, 1).contiguous().view(N * B, D).view(N, B, D).transpose(0, 1),
    "grid and back": lambda x: x.view(B, 2, 3, D).permute(0, 3, 1, 2).flatten(2).transpose(1, 2),
    "grid transposed": lambda x: x.view(B, 2, 3, D).transpose(1, 2).reshape(B, N, D),
    "patch merging": lambda x: torch.cat([x.view(B, 2, 3, D)[:, 0], x.view(B, 2, 3, D)[:, 1]], -1),
    "pooled": lambda x: x.mean(1, keepdim=True),
    "pooled without the first": lambda x: x[:, 1:].mean(1, keepdim=True),
    "first and pool": lambda x: torch.stack([x[:, 0], x[:, 1:].mean(1)], 1),
    "summed in pairs": lambda x: x.view(B, 3, 2, D).sum(2),
    "residual of a shift": lambda x: x + x.roll(1, 1),
    "gated": lambda x: x * torch.sigmoid(x) + F.gelu(x),
    "normalised": lambda x: F.layer_norm(x, (D,)) + x / (x.pow(2).mean(-1, keepdim=True) + 1).sqrt(),
    "GLU": lambda x: F.glu(torch.cat([x, x], -1), -1),
    "halves": lambda x: torch.cat([-x[..., 2:], x[..., :2]], -1),
    "written into": copy_into,
    "scattered into": scatter_into,
    "masked": lambda x: x.masked_fill(torch.tensor([0, 1, 0, 0, 1, 0], dtype=torch.bool)[None, :, None], 0.0) + x * 0 + x,
    "expanded and pooled": lambda x: x.unsqueeze(2).expand(B, N, 2, D).mean(2),
}


class Moved(nn.Module):
    """Attention, a movement of its tokens, attention again; no residual, so that the second reads what the movement gives."""

    def __init__(self, move):
        super().__init__()
        self.move = move

    def forward(self, x):
        tokens = F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0]
        y = self.move(tokens)[:, None]
        return F.scaled_dot_product_attention(y, y, y)[:, 0].mean((1, 2))


def true_pairs(move):
    """(row of the second attention's values, row of the first's output) where the Jacobian is not zero."""
    x = torch.randn(B, N, D, requires_grad=True)
    y = move(x)
    pairs = set()
    for b in range(B):
        for m in range(y.shape[1]):
            (g,) = torch.autograd.grad((y[b, m] * torch.randn_like(y[b, m])).sum(), x, retain_graph=True)
            pairs |= {(b * y.shape[1] + m, i * N + n) for i, n in g.abs().sum(-1).nonzero().tolist()}
    return pairs


@pytest.mark.parametrize("name", MOVES)
def test_rows_follow_what_really_moves(name):
    move = MOVES[name]
    with followed(Moved(move), torch.randn(B, N, D)) as live:
        link = live.graph.states[1]["value"].from_calls[0]
    assert set(zip(link.ids.tolist(), link.rows.tolist())) >= true_pairs(move)
    if name != "masked":  # a masked row is known to the graph and has no gradient
        assert set(zip(link.ids.tolist(), link.rows.tolist())) == true_pairs(move)


def test_a_pool_shares_a_rows_relevance_among_its_tokens():
    with followed(Moved(MOVES["pooled without the first"]), torch.randn(B, N, D)) as live:
        link = live.graph.states[1]["value"].from_calls[0]
    assert link.weight.tolist() == pytest.approx([0.2] * 10)


MIXES = {
    "a linear layer over tokens": (lambda x: nn.Linear(N, N)(x.transpose(1, 2)).transpose(1, 2), "Addmm|Bmm|Mm"),
    "a convolution over tokens": (lambda x: F.conv1d(x.transpose(1, 2), torch.randn(D, D, 3), padding=1).transpose(1, 2), "Convolution"),
    "a cumulative sum": (lambda x: x.cumsum(1), "Cumsum"),
    "a softmax over tokens": (lambda x: x.softmax(1), "Softmax"),
    "a sort": (lambda x: x.sort(1).values, "Sort"),
    "a Fourier transform": (lambda x: torch.fft.fft(x, dim=1).real, "Fft|Real"),
    "a product of tokens": (lambda x: torch.einsum("bnd,bmd->bnm", x, x)[..., :D], "Bmm"),
}


@pytest.mark.parametrize("name", MIXES)
def test_mixing_tokens_outside_attention_is_an_error_that_names_the_operation(name):
    move, operation = MIXES[name]
    with pytest.raises(TraceError, match=operation):
        zl.trace(Moved(move), torch.randn(B, N, D))


def test_before_any_attention_a_mixing_operation_is_where_tokens_begin():
    class Stem(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, D, 3, 2, 1)

        def forward(self, pixels):
            x = F.relu(self.conv(F.relu(F.conv2d(pixels, torch.ones(3, 3, 3, 3)))))
            y = x.flatten(2).transpose(1, 2)[:, None]
            return F.scaled_dot_product_attention(y, y, y).mean((1, 2, 3))

    (stream,) = zl.trace(Stem(), torch.randn(2, 3, 8, 12)).streams
    assert (stream.name, stream.tokens, stream.grid) == ("pixels", 15, (3, 5))


def test_patches_cut_out_by_reshaping_are_tokens_of_the_picture():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(3 * 16, D)

        def forward(self, pixels):
            b = len(pixels)
            patches = pixels.reshape(b, 3, 2, 4, 3, 4).permute(0, 2, 4, 3, 5, 1).reshape(b, 6, 48)
            y = self.embed(patches)[:, None]
            return F.scaled_dot_product_attention(y, y, y).mean((1, 2, 3))

    model, image = Cut(), torch.randn(2, 3, 8, 12)
    found = zl.attention_relevance(model, image, target=zl.target.output(lambda o: o), grid=(2, 3))
    assert found.by_source["pixels"].shape == (2, 6)
    assert found.grid("pixels").shape == (2, 2, 3)


@pytest.mark.parametrize("shape", ["folded heads", "no heads", "windows", "five axes"])
def test_layouts_of_queries_and_keys(shape):
    """[B H, N, D], [B, N, D], [B x windows, H, n, D] and [B, windows, H, n, D] are the same tokens in other clothes."""

    class Layout(nn.Module):
        def forward(self, x):
            y = x @ torch.eye(D)
            y = F.scaled_dot_product_attention(*[self.fold(y)] * 3)
            z = self.fold(self.unfold(y) + x)
            return self.unfold(F.scaled_dot_product_attention(z, z, z)).mean((1, 2))

        def fold(self, x):
            if shape == "folded heads":
                return x.view(B, N, 2, 2).transpose(1, 2).reshape(B * 2, N, 2)
            if shape == "no heads":
                return x
            if shape == "windows":
                return x.view(B, 2, 3, 2, 2).transpose(2, 3).reshape(B * 2, 2, 3, 2)
            return x.view(B, 2, 3, 2, 2).transpose(2, 3)

        def unfold(self, y):
            if shape == "folded heads":
                return y.view(B, 2, N, 2).transpose(1, 2).reshape(B, N, D)
            return y if shape == "no heads" else y.reshape(B, 2, 2, 3, 2).transpose(2, 3).reshape(B, N, D)

    with followed(Layout(), torch.randn(B, N, D)) as live:
        link = live.graph.states[1]["value"].from_calls[0]
        assert live.graph.streams["x"].tokens == N
        assert link.ids.tolist() == link.rows.tolist() == list(range(B * N))
    assert zl.trace(Layout(), torch.randn(B, N, D)).calls[0].heads == (1 if shape == "no heads" else 2)
