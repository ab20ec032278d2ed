"""The measured pixel path is the preprocessing: its matrices are PIL's, its gradient is their adjoint, and what it cannot be is refused."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter, ImageOps

from guided.rewriting_toys import R, levels, photo, sized, tensor
from zeroline import zoo
from zeroline.errors import InputError
from zeroline.model.pixel_path import measured

HEIGHT, WIDTH = 40, 52
PHOTO, OTHER = photo(HEIGHT, WIDTH, 0), photo(HEIGHT, WIDTH, 1)
MEAN, STD = torch.tensor([0.48, 0.45, 0.4])[:, None, None], torch.tensor([0.27, 0.22, 0.3])[:, None, None]
SIZES = {"smaller": (24, 30), "larger": (77, 90), "one axis only": (52, 61), "mixed": (20, 61), "much smaller": (7, 5)}
FILTERS = [R.NEAREST, R.BOX, R.BILINEAR, R.HAMMING, R.BICUBIC, R.LANCZOS]


def pil_matrix(inputs, outputs, how):
    """PIL's own resize of one axis in floating point: [outputs, inputs]."""
    return np.asarray(Image.fromarray(np.eye(inputs, dtype=np.float32)).resize((inputs, outputs), how), np.float64)


def pixels(image):
    return tensor(image)[0]


def vit(**how):
    from transformers import ViTImageProcessor

    processor = ViTImageProcessor(**how)
    return lambda image: dict(processor(images=image, return_tensors="pt"))


def clip(**how):
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor(**how)
    return lambda image: dict(processor(images=image, return_tensors="pt"))


def torchvision(image):
    from torchvision.transforms import v2

    steps = [
        v2.ToImage(),
        v2.Resize(32, antialias=True),
        v2.CenterCrop(28),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5] * 3, [0.2] * 3),
    ]
    return v2.Compose(steps)(image)[None]


LINEAR = {
    "as it is": tensor,
    "normalised": lambda image: (tensor(image) - MEAN) / STD,
    "levels, not shares": lambda image: tensor(image) * 255,
    "inverted": lambda image: 1 - 2 * tensor(image),
    "cropped": lambda image: tensor(image.resize((60, 46)).crop((5, 3, 45, 40))),
    "cropped to one side": lambda image: tensor(image)[..., 11:, :30],
    "letterboxed": lambda image: tensor(ImageOps.pad(image, (64, 64))),
    "letterboxed in a colour": lambda image: (tensor(ImageOps.pad(image, (33, 64), color=(120, 30, 200))) - MEAN) / STD,
    "padded by reflection": lambda image: F.pad(tensor(image), (4, 5, 6, 7), mode="reflect"),
    "padded, then smaller": lambda image: tensor(ImageOps.expand(image, (5, 3), (20, 200, 90)).resize((22, 17), R.BILINEAR)),
    "mirrored": lambda image: tensor(ImageOps.mirror(image)),
    "upside down and smaller": lambda image: tensor(ImageOps.flip(image).resize((30, 20))),
    "BGR": lambda image: ((tensor(image) - MEAN) / STD).flip(1),
    "grey, three times": lambda image: tensor(image.convert("L").convert("RGB")),
    "grey, once": lambda image: tensor(image.convert("L"))[:, :1],
    "mixed colours": lambda image: torch.einsum(
        "ck,bkhw->bchw", torch.tensor([[0.5, 0.3, 0.2], [-0.2, 0.9, 0.1], [0.0, 0.4, -1.0], [1.0, 0, 0]]), tensor(image)
    ),
    "smoothed": lambda image: tensor(image.filter(ImageFilter.GaussianBlur(1))),
    "floating-point bicubic": lambda image: F.interpolate(tensor(image), (30, 31), mode="bicubic", antialias=True),
    "bilinear without antialias": lambda image: F.interpolate(tensor(image), (16, 19), mode="bilinear"),
    "torchvision": torchvision,
    "ViTImageProcessor": vit(size={"height": 24, "width": 36}),
    "ViTImageProcessor, not rescaled": vit(size={"height": 24, "width": 24}, do_rescale=False, image_mean=[120.0] * 3, image_std=[60.0, 70.0, 80.0]),
    "CLIPImageProcessor": clip(size={"shortest_edge": 24}, crop_size={"height": 22, "width": 20}),
    "CLIPImageProcessor, padded crop": clip(size={"shortest_edge": 16}, crop_size={"height": 22, "width": 20}),
    "the zoo's": lambda image: zoo.preprocess("digits-vit", image),
}


def image_of(inputs):
    return inputs if isinstance(inputs, torch.Tensor) else inputs["pixel_values"]


def level_of(preprocess):
    """What a level of 255 is in each of the model's channels, at most: [channels]."""
    black, *colours = (image_of(preprocess(Image.new("RGB", (WIDTH, HEIGHT), c)))[0].double() for c in ("black", "red", "lime", "blue"))
    return sum((colour - black).flatten(1).abs().amax(1) for colour in colours) / 255


@pytest.mark.parametrize("how", FILTERS, ids=lambda how: how.name.lower())
@pytest.mark.parametrize("size", SIZES.values(), ids=list(SIZES))
def test_the_matrices_are_those_of_pil_in_floating_point(size, how):
    path = measured(sized(*size, how), PHOTO)
    assert path.size == (HEIGHT, WIDTH)
    assert path.rows.numpy() == pytest.approx(pil_matrix(HEIGHT, size[1], how), abs=0.012)
    assert path.columns.numpy() == pytest.approx(pil_matrix(WIDTH, size[0], how), abs=0.012)
    assert path.colours.numpy() == pytest.approx(np.eye(3), abs=0.01)
    assert path.offset.abs().max() < 0.01


@pytest.mark.parametrize(
    ("how", "gap"),
    [
        pytest.param(R.BOX, 0.4, id="box"),
        pytest.param(R.BILINEAR, 0.4, id="bilinear"),
        pytest.param(R.BICUBIC, 0.9, id="bicubic"),
        pytest.param(R.LANCZOS, 0.9, id="lanczos"),
    ],
)
def test_a_large_picture_brought_down_a_lot_is_measured_too(how, gap):
    path = measured(sized(24, 16, how), photo(301, 420, 2))
    assert path.gap < gap
    assert np.abs(path.rows.numpy() - pil_matrix(301, 16, how)).sum(1).max() < 0.15
    assert np.abs(path.columns.numpy() - pil_matrix(420, 24, how)).sum(1).max() < 0.15


@pytest.mark.parametrize("name", LINEAR)
def test_the_path_gives_what_the_preprocessing_gives_on_this_picture_on_another_and_beside_it(name):
    preprocess, draw = LINEAR[name], np.random.default_rng(0)
    path, level = measured(preprocess, PHOTO), level_of(LINEAR[name])[:, None, None]
    near = Image.fromarray(np.clip(levels(PHOTO) + draw.integers(-8, 9, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8))
    for image in (PHOTO, OTHER, near):
        truth = image_of(preprocess(image))[0].double()
        off = (path.image(pixels(image)[None])[0].double() - truth) / level
        assert off.square().mean().sqrt() < 1.0
        assert off.abs().max() < 4.0


@pytest.mark.parametrize("name", LINEAR)
def test_the_gap_is_the_root_mean_square_in_levels(name):
    preprocess = LINEAR[name]
    path = measured(preprocess, PHOTO)
    off = (path.image(pixels(PHOTO)[None])[0].double() - image_of(preprocess(PHOTO))[0].double()) / level_of(preprocess)[:, None, None]
    assert path.gap == pytest.approx(float(off.square().mean().sqrt()), rel=0.03, abs=1e-3)
    again = path.checked_on(preprocess, OTHER)
    there = (path.image(pixels(OTHER)[None])[0].double() - image_of(preprocess(OTHER))[0].double()) / level_of(preprocess)[:, None, None]
    assert again.gap == pytest.approx(float(there.square().mean().sqrt()), rel=0.03, abs=1e-3)
    assert again.rows is path.rows


@pytest.mark.parametrize("how", [R.BILINEAR, R.BICUBIC], ids=lambda how: how.name.lower())
def test_the_gradient_is_the_adjoint_of_pils_resize_and_of_the_normalisation(how):
    small = photo(HEIGHT, WIDTH, 3, low=60, high=190)  # nothing clips on the way

    def preprocess(image):
        return ((tensor(image.resize((24, 30), how)) - MEAN) / STD).flip(1)

    path = measured(preprocess, small)
    upstream = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, 30, 24)))
    x = pixels(small)[None].double().requires_grad_()
    (found,) = torch.autograd.grad(path.image(x), x, upstream)
    rows, columns = pil_matrix(HEIGHT, 30, how), pil_matrix(WIDTH, 24, how)
    by_colour = upstream.numpy()[0][::-1] / STD.numpy().astype(float)  # BGR: the first of the model's channels is blue
    truth = np.einsum("oi,coq,qj->cij", rows, by_colour, columns)
    assert found[0].numpy() == pytest.approx(truth, abs=0.02 * np.abs(truth).max())


def test_rows_of_a_batch_are_those_of_one_and_the_dtype_is_kept():
    path = measured(LINEAR["letterboxed in a colour"], PHOTO)
    both = torch.stack([pixels(PHOTO), pixels(OTHER)])
    assert torch.allclose(path.image(both)[1], path.image(both[1:])[0], atol=1e-6)
    assert path.image(both.double()).dtype == torch.float64


def test_a_tensor_stays_a_tensor_and_a_mapping_keeps_what_lies_beside_the_image():
    assert measured(tensor, PHOTO).name is None
    assert torch.allclose(measured(tensor, PHOTO).inputs(pixels(PHOTO)[None]), tensor(PHOTO), atol=1e-4)

    def preprocess(image):
        mask = torch.arange(6).view(1, 6)
        return {
            "mask": mask,
            "picture": tensor(image),
            "size": torch.tensor([[HEIGHT, WIDTH]]),
            "scale": torch.tensor(2.0),
            "how": "plain",
            "none": None,
        }

    path = measured(preprocess, PHOTO)
    found = path.inputs(torch.stack([pixels(PHOTO), pixels(OTHER), pixels(PHOTO)]))
    assert path.name == "picture"
    assert set(found) == {"mask", "picture", "size", "scale", "how", "none"}
    assert torch.equal(found["mask"], torch.arange(6).repeat(3, 1))
    assert torch.equal(found["size"], torch.tensor([[HEIGHT, WIDTH]] * 3))
    assert (float(found["scale"]), found["how"], found["none"]) == (2.0, "plain", None)
    assert torch.allclose(found["picture"][1], pixels(OTHER), atol=1e-5)


def test_what_overshoots_is_clipped_as_eight_bit_resizing_does():
    hard = Image.fromarray(np.kron(np.random.default_rng(0).integers(0, 2, (10, 13)), np.ones((4, 4))).astype(np.uint8) * 255).convert("RGB")
    for preprocess, eight_bit in ((sized(90, 70), True), (lambda image: F.interpolate(tensor(image), (70, 90), mode="bicubic"), False)):
        path = measured(preprocess, hard)
        assert path.clamped == eight_bit
        truth = preprocess(hard)
        assert (float(truth.max()) > 1.01) is not eight_bit
        assert torch.allclose(path.image(pixels(hard)[None]), truth, atol=4 / 255)


def test_padding_has_the_preprocessings_colour_and_no_weight():
    path = measured(lambda image: tensor(ImageOps.pad(image, (52, 60), color=(120, 30, 200))), PHOTO)
    beside = torch.ones(60, dtype=torch.bool)
    beside[10:50] = False
    assert not path.rows[beside].any()
    assert torch.allclose(path.rows[~beside], torch.eye(HEIGHT), atol=1e-6)
    assert path.offset[:, beside].mean((1, 2)).mul(255).tolist() == pytest.approx([120, 30, 200], abs=0.01)
    assert path.offset[:, ~beside].abs().max() < 1e-6


CELLS = {
    "as it is": (tensor, (5, 4)),
    "smaller": (sized(24, 30, R.BILINEAR), (3, 4)),
    "larger": (sized(120, 80, R.NEAREST), (8, 6)),
    "cropped": (lambda image: tensor(image.resize((60, 46)).crop((12, 3, 44, 35))), (4, 8)),
    "letterboxed": (lambda image: tensor(ImageOps.pad(image, (64, 64))), (8, 8)),
    "mirrored": (lambda image: tensor(ImageOps.mirror(image)), (2, 4)),
    "a grid that does not divide": (sized(23, 31, R.BOX), (4, 5)),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_pixel_goes_to_the_cell_that_it_changes_most(name):
    preprocess, grid = CELLS[name]
    path = measured(preprocess, PHOTO)
    found = path.cells(grid)
    high, wide = path.offset.shape[1:]
    base = Image.new("RGB", (WIDTH, HEIGHT), (100, 100, 100))
    cell = (torch.arange(high) * grid[0] // high)[:, None] * grid[1] + (torch.arange(wide) * grid[1] // wide)[None, :]
    still = preprocess(base)
    draw = np.random.default_rng(0)
    for row, column in itertools.chain(
        zip(draw.integers(0, HEIGHT, 40), draw.integers(0, WIDTH, 40)), [(0, 0), (HEIGHT - 1, WIDTH - 1), (0, WIDTH - 1)]
    ):
        lit = base.copy()
        lit.putpixel((int(column), int(row)), (255, 255, 255))
        moved = (preprocess(lit) - still)[0].abs().sum(0)
        sums = torch.zeros(grid[0] * grid[1]).index_add_(0, cell.flatten(), moved.flatten())
        at = int(found[row, column])
        if float(sums.max()) < 1 / 255:
            assert at == -1
        else:
            assert float(sums[at]) >= 0.8 * float(sums.max())


def test_cells_of_a_picture_as_it_is_are_blocks():
    found = measured(tensor, photo(24, 32)).cells((3, 4)).numpy()
    assert np.array_equal(found, np.arange(24)[:, None] // 8 * 4 + np.arange(32)[None] // 8)


REFUSED = {
    "equalised": lambda image: tensor(ImageOps.equalize(image)),
    "autocontrast": lambda image: tensor(ImageOps.autocontrast(image)),
    "gamma 2.2": lambda image: tensor(image) ** 2.2,
    "gamma 1.1": lambda image: tensor(image) ** 1.1,
    "solarised": lambda image: tensor(ImageOps.solarize(image)),
    "posterised": lambda image: tensor(ImageOps.posterize(image, 4)),
    "posterised to 64 levels": lambda image: tensor(ImageOps.posterize(image, 6)),  # by three levels at most
    "sharpened": lambda image: tensor(image.filter(ImageFilter.SHARPEN)),
    "median": lambda image: tensor(image.filter(ImageFilter.MedianFilter(3))),
    "turned by 90 degrees": lambda image: tensor(image.rotate(90, expand=True)),
    "turned by 10 degrees": lambda image: tensor(image.rotate(10)),
    "hue and saturation": lambda image: torch.from_numpy(np.asarray(image.convert("HSV")).copy()).permute(2, 0, 1)[None].float() / 255,
    "its own mean and deviation": lambda image: (tensor(image) - tensor(image).mean()) / tensor(image).std().clamp_min(1e-3),
    "soft clipping": lambda image: torch.tanh(2 * tensor(image) - 1),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_more_than_resize_crop_pad_and_normalise_is_refused(name):
    with pytest.raises(InputError, match=r"does more than resize, crop, pad and normalise: .* off by .* levels|the same for black and for white"):
        measured(REFUSED[name], PHOTO)


@pytest.mark.parametrize("name", ["equalised", "autocontrast", "median", "sharpened", "gamma 2.2"])
def test_what_is_refused_is_refused_on_a_flat_picture_too(name):
    with pytest.raises(InputError, match="does more than"):
        measured(REFUSED[name], Image.new("RGB", (WIDTH, HEIGHT), (128, 128, 128)))


def test_a_path_that_does_not_hold_for_another_picture_is_refused_there():
    def preprocess(image):  # the identity for all but bright pictures
        return tensor(image) if levels(image).mean() < 200 else 1 - tensor(image)

    path = measured(preprocess, PHOTO)
    with pytest.raises(InputError, match="does more than"):
        path.checked_on(preprocess, photo(HEIGHT, WIDTH, 0, low=220, high=255))


def test_a_lone_difference_is_refused_though_the_mean_is_small():
    def preprocess(image):
        found = tensor(image)
        if len(np.unique(levels(image))) > 100:  # the picture itself, not those that it is measured with
            found[..., 7, 9] += 20 / 255  # 0.4 levels in the mean
        return found

    with pytest.raises(InputError, match="does more than"):
        measured(preprocess, PHOTO)


def test_a_path_measured_on_a_smooth_picture_holds_for_a_hard_one():
    def preprocess(image):
        return F.interpolate(tensor(image), (32, 32), mode="bicubic")

    smooth = Image.fromarray(np.tile(np.linspace(40, 200, WIDTH).astype(np.uint8), (HEIGHT, 1))).convert("RGB")
    hard = Image.fromarray(np.kron(np.random.default_rng(0).integers(0, 2, (10, 13)), np.ones((4, 4))).astype(np.uint8) * 255).convert("RGB")
    assert measured(preprocess, hard).gap < 0.01
    assert measured(preprocess, smooth).checked_on(preprocess, hard).gap < 0.01


def test_what_is_random_is_refused():
    draw = np.random.default_rng(0)

    def cropped(image):
        at = int(draw.integers(0, 9))
        return tensor(image)[..., at : at + 30, :]

    def noisy(image):
        return tensor(image) + torch.rand(1, 3, HEIGHT, WIDTH) / 100

    for preprocess in (cropped, noisy):
        with pytest.raises(InputError, match="not the same twice on one picture"):
            measured(preprocess, PHOTO)


def test_a_random_step_that_is_seldom_is_refused_by_its_difference():
    calls = itertools.count()

    def flips(image):  # not on the first two calls, which are compared
        return tensor(image).flip(-1) if next(calls) in (4, 9, 17, 30) else tensor(image)

    with pytest.raises(InputError, match="does more than"):
        measured(flips, PHOTO)


def test_what_gives_no_image_or_several_is_refused():
    with pytest.raises(InputError, match=r"gives no image \[batch, 3, height, width\]"):
        measured(lambda image: {"input_ids": torch.zeros(1, 4)}, PHOTO)
    with pytest.raises(InputError, match="gives no image"):
        measured(lambda image: (tensor(image) * 255).to(torch.uint8), PHOTO)
    with pytest.raises(InputError, match="makes 5 images of one picture"):
        measured(lambda image: tensor(image).repeat(5, 1, 1, 1), PHOTO)
    with pytest.raises(InputError, match="same for black and for white"):
        measured(lambda image: torch.zeros(1, 3, 8, 8), PHOTO)
    with pytest.raises(InputError, match="for pictures of one size"):
        measured(lambda image: tensor(image)[..., : 20 + len(np.unique(levels(image))) % 7], PHOTO)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(value):
    def preprocess(image):
        found = tensor(image)
        found[..., 3, 3] = value
        return found

    with pytest.raises(InputError):
        measured(preprocess, PHOTO)
