"""A guest on a host, against loops written from the definition."""

import pytest
import torch

from zeroline.errors import InputError
from zeroline.maths.compose import compose


def test_every_pixel_is_blended_by_opacity_and_shape():
    host, guest = torch.rand(3, 9, 11), torch.rand(3, 4, 5)
    alpha = torch.rand(4, 5)
    found, where = compose(host, guest, at=(2, 3), size=(5, 4), opacity=0.6, alpha=alpha)
    for y in range(9):
        for x in range(11):
            inside = 2 <= x < 7 and 3 <= y < 7
            a = 0.6 * float(alpha[y - 3, x - 2]) if inside else 0.0
            for c in range(3):
                other = float(guest[c, y - 3, x - 2]) if inside else 0.0
                assert float(found[c, y, x]) == pytest.approx(float(host[c, y, x]) * (1 - a) + other * a, abs=1e-6)
            assert bool(where[y, x]) == (inside and float(alpha[y - 3, x - 2]) > 0.5)


def test_the_host_is_left_as_it_was_and_a_guest_without_a_shape_is_whole():
    host = torch.zeros(3, 6, 6)
    found, where = compose(host, torch.ones(3, 2, 2), at=(0, 4), size=(6, 2))
    assert float(host.sum()) == 0
    assert torch.equal(found[0], where.float())
    assert where.sum() == 12


def test_a_guest_is_resized_to_the_size_asked():
    found, _ = compose(torch.zeros(3, 8, 8), torch.full((3, 3, 3), 0.5), at=(1, 1), size=(6, 5))
    assert torch.allclose(found[:, 1:6, 1:7], torch.full((3, 5, 6), 0.5))
    assert float(found.sum()) == pytest.approx(0.5 * 3 * 30)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"at": (5, 0)}, "a guest of 4 x 4 at 5,0 is not wholly on the host of 8 x 8"),
        ({"at": (0, -1)}, "not wholly on the host"),
        ({"size": (0, 4)}, "a guest of 0 x 4 pixels"),
        ({"opacity": 0.0}, "an opacity of 0 was asked"),
        ({"opacity": 1.5}, "an opacity of 1.5 was asked"),
    ],
)
def test_what_cannot_be_laid_on_is_refused(change, said):
    with pytest.raises(InputError, match=said):
        compose(torch.zeros(3, 8, 8), torch.ones(3, 2, 2), **{"at": (0, 0), "size": (4, 4), **change})
