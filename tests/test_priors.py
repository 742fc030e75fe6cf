"""The detector's priors and the coding of boxes, against the formulas written out and each other."""

from math import exp, log, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from espy.priors import PER_CELL, decode, encode, priors


def test_the_first_cell_of_a_map_is_the_text_written_out():
    """Networks 4, at 300: sizes 30, 77, 125, ...; the cell's centre, clipped to the picture."""
    found = priors(300)
    a, b = 30 / 300, sqrt(30 * 77) / 300
    shapes = [(a, a), (b, b), (a * sqrt(2), a / sqrt(2)), (a / sqrt(2), a * sqrt(2)), (a * sqrt(3), a / sqrt(3)),
              (a / sqrt(3), a * sqrt(3))]  # fmt: skip
    assert np.allclose(found[:PER_CELL], [(4 / 300, 4 / 300, w, h) for w, h in shapes], atol=1e-7)
    second_row = 38 * PER_CELL
    assert np.allclose(found[second_row, :2], (4 / 300, 12 / 300), atol=1e-7)
    assert np.allclose(found[PER_CELL, :2], (12 / 300, 4 / 300), atol=1e-7)
    assert np.allclose(found[-PER_CELL, :2], (0.5, 0.5))


@pytest.mark.parametrize("size", [32, 64, 96, 128, 160, 224, 256, 300, 320, 416, 512, 608, 1024])
def test_every_prior_lies_in_the_picture_and_there_are_six_a_cell(size):
    found = priors(size)
    cells = sum((-(-size // stride)) ** 2 for stride in (8, 16, 32, 64, 128)) + 1
    assert found.shape == (PER_CELL * cells, 4)
    assert found.dtype == np.float32
    assert (found >= 0).all()
    assert (found <= 1).all()
    assert (found[:, 2:] > 0).all()


def test_an_offset_is_the_text_written_out():
    prior = np.array([[0.5, 0.4, 0.2, 0.1]])
    box = np.array([[0.45, 0.30, 0.75, 0.60]])  # centre (0.6, 0.45), size (0.3, 0.3)
    expected = [0.1 / 0.2 / 0.1, 0.05 / 0.1 / 0.1, log(0.3 / 0.2) / 0.2, log(0.3 / 0.1) / 0.2]
    assert np.allclose(encode(box, prior), [expected])
    x, w = 0.5 + 0.1 * 2.0 * 0.2, 0.2 * exp(0.2 * 1.5)
    assert np.allclose(decode(np.array([[2.0, 0.0, 1.5, 0.0]]), prior)[0, [0, 2]], [x - w / 2, x + w / 2])


corner = st.floats(0, 0.98)


@given(
    st.lists(st.tuples(corner, corner, st.floats(0.01, 1), st.floats(0.01, 1)), min_size=1, max_size=8), st.integers()
)
def test_decoding_undoes_encoding(boxes, seed):
    corners = np.array([(x, y, x + w, y + h) for x, y, w, h in boxes])
    given_priors = np.random.default_rng(abs(seed)).choice(priors(300), len(boxes))
    assert np.allclose(decode(encode(corners, given_priors), given_priors), corners, atol=1e-5)
