"""The figure of all corrections shows each map with its own figures, and the agreement as numbers."""

import numpy as np
import pytest
import torch

import zeroline as zl
from zeroline import zoo
from zeroline.report import corrections_figure


@pytest.fixture(scope="module")
def found(digits_vit):
    sample = zoo.samples("digits-vit")[12]
    return zl.corrections(digits_vit, sample.inputs, target="one", mask=sample.masks[0])


def test_every_way_has_a_panel_with_its_figures(found):
    drawn = corrections_figure.figure(found, np.zeros((64, 64, 3), dtype=np.float32))
    panels = {axis.get_title(): axis for part in drawn.subfigs for axis in part.axes}
    assert set(found.members) <= set(panels)
    for label, row in zip(found.members, found.rows()):
        assert panels[label].get_xlabel() == f"inside {row[2]}, points at it: {row[3]}\nobject covered {row[4]}"


def test_the_matrix_holds_the_agreement(found):
    drawn = corrections_figure.figure(found, np.zeros((64, 64, 3), dtype=np.float32))
    matrix = next(axis for part in drawn.subfigs for axis in part.axes if "agreement" in axis.get_title())
    assert torch.allclose(torch.as_tensor(np.asarray(matrix.images[0].get_array())), found.agreement()[0])
    assert len(matrix.texts) == 64
