"""HOG, HOF and MBH against loops written from their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kinema.models.histograms import cell_histograms, sobel, vote, window_histograms

BINS = 9


def mirrored(index: int, length: int) -> int:
    """Where a position outside the image is read: mirrored, the outermost pixel not repeated."""
    if index < 0:
        return -index
    return 2 * (length - 1) - index if index >= length else index


def slopes(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sobel differences of an image (H, W), pixel by pixel."""
    height, width = image.shape
    across, down = np.zeros_like(image), np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            above, below = mirrored(y - 1, height), mirrored(y + 1, height)
            left, right = mirrored(x - 1, width), mirrored(x + 1, width)
            for step in (-1, 0, 1):
                row, column = mirrored(y + step, height), mirrored(x + step, width)
                across[y, x] += (2 - abs(step)) * (image[row, right] - image[row, left])
                down[y, x] += (2 - abs(step)) * (image[below, column] - image[above, column])
    return across, down


def vote_of(x: float, y: float, signed: bool, votes: str) -> np.ndarray:
    """What one vector adds to a histogram."""
    turn = 2 * math.pi if signed else math.pi
    angle = math.atan2(y, x) % turn
    width = turn / BINS
    histogram = np.zeros(BINS)
    length = math.hypot(x, y)
    if votes == "hard":
        histogram[int(angle // width) % BINS] += length
        return histogram
    for b in range(BINS):
        middle = (b + 0.5) * width
        apart = min(abs(angle - middle), turn - abs(angle - middle))
        histogram[b] += length * max(0.0, 1 - apart / width)
    return histogram


def histogram_of(x: np.ndarray, y: np.ndarray, signed: bool, votes: str) -> np.ndarray:
    """Mean vote of vectors of any shape."""
    total = np.zeros(BINS)
    for u, v in zip(x.reshape(-1), y.reshape(-1), strict=True):
        total += vote_of(float(u), float(v), signed, votes)
    return total / x.size


def image(seed: int, height: int = 16, width: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(height, width))


def test_sobel_is_the_sum_over_the_neighbourhood() -> None:
    expected = slopes(image(0))
    got = sobel(torch.from_numpy(image(0))[None, None])
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one[0, 0].numpy(), other, atol=1e-12)


def test_a_ramp_has_the_slope_of_its_definition() -> None:
    """One per pixel to the right: 8, as the kernel is not scaled."""
    ramp = torch.arange(12.0)[None, None, None].expand(1, 1, 9, 12)
    across, down = sobel(ramp)
    assert (across[..., 1:-1] == 8).all()
    assert (down == 0).all()


@pytest.mark.parametrize("votes", ["hard", "linear"])
@pytest.mark.parametrize("signed", [False, True])
def test_cells_hold_the_mean_of_their_votes(signed: bool, votes) -> None:
    x, y = image(1), image(2)
    got = cell_histograms(torch.from_numpy(x), torch.from_numpy(y), 8, BINS, signed, votes)
    assert got.shape == (2, 3, BINS)
    for row in range(2):
        for column in range(3):
            cell = slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8)
            expected = histogram_of(x[cell], y[cell], signed, votes)
            np.testing.assert_allclose(got[row, column].numpy(), expected, atol=1e-12)


def test_hog_of_an_image_is_the_direct_one() -> None:
    pixels = image(3)
    x, y = sobel(torch.from_numpy(pixels)[None])
    got = cell_histograms(x, y, 8, BINS, signed=False, votes="hard")[0]
    across, down = slopes(pixels)
    expected = histogram_of(across[8:, 16:], down[8:, 16:], signed=False, votes="hard")
    np.testing.assert_allclose(got[1, 2].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("angle", "signed", "hit"),
    [
        (0, False, 0),
        (179.9, False, 8),
        (180.1, False, 0),
        (205, False, 1),
        (205, True, 5),
        (90, True, 2),
    ],
)
def test_directions_fall_into_their_bins(angle: float, signed: bool, hit: int) -> None:
    radians = torch.tensor(math.radians(angle), dtype=torch.float64).view(1, 1, 1, 1)
    votes = vote(radians.cos(), radians.sin(), BINS, signed, "hard").flatten()
    assert votes.argmax() == hit
    assert votes.sum() == pytest.approx(1)


def test_all_votes_are_counted_and_no_motion_votes_for_nothing() -> None:
    x, y = torch.from_numpy(np.random.default_rng(4).normal(size=(2, 4, 3, 9, 8)))
    for votes in ("hard", "linear"):
        found = vote(x, y, BINS, True, votes)
        assert found.shape == (4, BINS, 9, 8)
        torch.testing.assert_close(found.sum(dim=1), torch.hypot(x, y).sum(dim=1))
    zero = torch.zeros(8, 8)
    assert not cell_histograms(zero, zero, 8, BINS, True, "hard").any()


def test_opposite_flows_differ_in_hof_and_not_in_hog() -> None:
    x, y = torch.from_numpy(image(6)), torch.from_numpy(image(7))
    for signed, same in ((False, True), (True, False)):
        here, there = (cell_histograms(s * x, s * y, 8, BINS, signed, "hard") for s in (1.0, -1.0))
        assert torch.allclose(here, there) is same


def window_at(x: np.ndarray, y: np.ndarray, column: int, row: int, window: int) -> np.ndarray:
    """Histogram of the window around the pixel corner (column, row), cut to the image."""
    half = window // 2
    rows = slice(max(row - half, 0), row + half)
    columns = slice(max(column - half, 0), column + half)
    return histogram_of(x[rows, columns], y[rows, columns], False, "hard")


@pytest.mark.parametrize("point", [(8.0, 8.0), (11.0, 3.0), (0.0, 16.0), (24.0, 0.0)])
def test_windows_around_pixel_corners_are_direct(point: tuple[float, float]) -> None:
    x, y = image(8), image(9)
    got = window_histograms(
        torch.from_numpy(x)[None, None],
        torch.from_numpy(y)[None, None],
        torch.tensor([[point]], dtype=torch.float64),
        8,
        BINS,
        signed=False,
        votes="hard",
    )
    expected = window_at(x, y, int(point[0]), int(point[1]), 8)
    np.testing.assert_allclose(got[0, 0].numpy(), expected, atol=1e-9)


def test_windows_between_corners_are_interpolated_and_channels_averaged() -> None:
    x, y = np.stack([image(i) for i in (10, 11)]), np.stack([image(i) for i in (12, 13)])
    got = window_histograms(
        torch.from_numpy(x)[None],
        torch.from_numpy(y)[None],
        torch.tensor([[[9.25, 6.5]]], dtype=torch.float64),
        4,
        BINS,
        signed=False,
        votes="hard",
    )[0, 0].numpy()
    expected = np.zeros(BINS)
    for channel in range(2):
        for column, across in ((9, 0.75), (10, 0.25)):
            for row, down in ((6, 0.5), (7, 0.5)):
                found = window_at(x[channel], y[channel], column, row, 4)
                expected += across * down * found / 2
    np.testing.assert_allclose(got, expected, atol=1e-9)
