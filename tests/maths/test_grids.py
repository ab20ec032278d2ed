"""Maps keep the sum and the orientation."""

import pytest
import torch

from zeroline.errors import SiteError
from zeroline.maths.grids import as_map


def test_images_are_summed_over_channels():
    values = torch.randn(2, 3, 4, 6)
    assert torch.equal(as_map(values), values.sum(1))


def test_tokens_are_laid_row_by_row_on_a_grid_that_is_not_square():
    values = torch.arange(8.0).view(1, 8, 1)
    assert as_map(values, (2, 3), prefix=2).tolist() == [[[2, 3, 4], [5, 6, 7]]]
    assert as_map(values, (2, 3)).tolist() == as_map(values, (2, 3), prefix=2).tolist()


def test_a_class_token_is_left_out_of_a_square():
    assert as_map(torch.ones(1, 10, 4)).tolist() == [[[4.0] * 3] * 3]


@pytest.mark.parametrize(("count", "grid"), [(8, None), (10, (3, 4)), (3, None)])
def test_a_grid_that_does_not_fit_is_one_clear_error(count, grid):
    with pytest.raises(SiteError, match=r"tokens"):
        as_map(torch.ones(1, count, 2), grid)


def test_a_vector_is_no_picture():
    with pytest.raises(SiteError, match="no picture"):
        as_map(torch.ones(2, 7))
