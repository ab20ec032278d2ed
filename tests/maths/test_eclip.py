"""Laws of the loosened similarity, and the two evidences against loops over channels and heads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zeroline.maths.eclip import attention_evidence, channel_evidence, loosened

sizes = st.integers(1, 4)


@st.composite
def rows(draw):
    """Queries, keys, and which keys count: at least one for each row."""
    n, keys, channels = draw(sizes), draw(st.integers(1, 7)), draw(st.integers(2, 5))
    random = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    query, key = torch.randn(n, channels, generator=random).double(), torch.randn(n, keys, channels, generator=random).double()
    counted = torch.rand(n, keys, generator=random) < 0.7
    counted[torch.arange(n), torch.randint(keys, (n,), generator=random)] = True
    return query, key, counted


@given(rows())
@settings(max_examples=60, deadline=None)
def test_lambda_is_the_cosine_brought_to_0_and_1_over_the_keys_that_count(given_rows):
    query, key, counted = given_rows
    found = loosened(query, key, counted)
    assert found.shape == counted.shape
    assert bool((found[~counted] == 0).all())
    for n in range(len(query)):
        own = {j: float(query[n] @ key[n, j] / (query[n].norm() * key[n, j].norm())) for j in range(counted.shape[1]) if counted[n, j]}
        low, high = min(own.values()), max(own.values())
        for j, cosine in own.items():
            truth = 1.0 if high == low else (cosine - low) / (high - low)
            assert float(found[n, j]) == pytest.approx(truth, abs=1e-9)
        assert float(found[n].max()) == 1.0
        assert len(own) == 1 or float(found[n][counted[n]].min()) == 0.0


@given(rows())
@settings(max_examples=60, deadline=None)
def test_lambda_is_between_0_and_1(given_rows):
    found = loosened(*given_rows)
    assert bool(((found >= 0) & (found <= 1)).all())


@given(rows(), st.floats(1e-3, 1e3), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_the_size_of_queries_and_keys_does_not_matter(given_rows, size, seed):
    query, key, counted = given_rows
    each = 10 ** torch.empty(*key.shape[:2], 1).uniform_(-3, 3, generator=torch.Generator().manual_seed(seed)).double()
    assert torch.allclose(loosened(size * query, each * key, counted), loosened(query, key, counted), rtol=0, atol=1e-9)


@given(rows())
@settings(max_examples=40, deadline=None)
def test_keys_that_do_not_count_change_nothing(given_rows):
    query, key, counted = given_rows
    other = torch.where(counted[..., None], key, 100 * key.flip(-1) + 7)
    assert torch.equal(loosened(query, other, counted), loosened(query, key, counted))


@given(rows(), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_order_of_keys_is_the_order_of_lambda(given_rows, random):
    query, key, counted = given_rows
    order = list(range(key.shape[1]))
    random.shuffle(order)
    assert torch.allclose(loosened(query, key[:, order], counted[:, order]), loosened(query, key, counted)[:, order], rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lambda_is_1_where_all_cosines_are_equal(dtype):
    query, key = torch.randn(3, 4, dtype=dtype), torch.randn(3, 1, 4, dtype=dtype).expand(3, 6, 4) * 2.0 ** torch.arange(6)[:, None]
    counted = torch.ones(3, 6, dtype=torch.bool)
    counted[1, 2:] = False
    assert torch.equal(loosened(query, key, counted), counted.to(dtype))


def test_lambda_of_a_row_that_sees_one_key_or_none():
    query, key = torch.randn(2, 4), torch.randn(2, 3, 4)
    counted = torch.tensor([[False, True, False], [False, False, False]])
    assert loosened(query, key, counted).tolist() == [[0, 1, 0], [0, 0, 0]]


def test_lambda_of_a_query_or_a_key_of_zeros_is_a_number():
    key = torch.randn(1, 3, 4)
    every = torch.ones(1, 3, dtype=torch.bool)
    assert loosened(torch.zeros(1, 4), key, every).tolist() == [[1, 1, 1]]
    key[0, 1] = 0
    assert bool(loosened(torch.randn(1, 4), key, every).isfinite().all())


@given(st.integers(0, 10_000), sizes, st.integers(1, 5), sizes, sizes)
@settings(max_examples=30, deadline=None)
def test_the_two_evidences_are_one(seed, n, keys, heads, width):
    """sum_c w_c v_jc lambda_j = sum_h lambda_j dS/dA^h_j with dS/dA^h_j = sum over the channels c of head h of w_c v_jc."""
    random = torch.Generator().manual_seed(seed)
    weight, value = (torch.randn(*shape, heads * width, generator=random).double() for shape in ((n,), (n, keys)))
    loose = torch.rand(n, keys, generator=random).double()
    by_channels, by_heads = torch.zeros(2, n, keys).double()
    gradient = torch.zeros(n, heads, keys).double()
    for i in range(n):
        for j in range(keys):
            for c in range(heads * width):
                by_channels[i, j] += weight[i, c] * value[i, j, c] * loose[i, j]
                gradient[i, c // width, j] += weight[i, c] * value[i, j, c]
            for h in range(heads):
                by_heads[i, j] += loose[i, j] * gradient[i, h, j]
    assert torch.allclose(channel_evidence(weight, value, loose), by_channels, rtol=1e-12, atol=1e-12)
    assert torch.allclose(attention_evidence(gradient, loose[:, None]), by_heads, rtol=1e-12, atol=1e-12)
    assert torch.allclose(by_channels, by_heads, rtol=1e-12, atol=1e-12)


def test_attention_of_every_head_weighs_its_own_gradient():
    gradient, weights = torch.randn(2, 3, 5).double(), torch.rand(2, 3, 5).double()
    truth = sum(gradient[:, h] * weights[:, h] for h in range(3))
    assert torch.allclose(attention_evidence(gradient, weights), truth)
