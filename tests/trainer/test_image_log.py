"""What trackers get of a validation's images."""

from types import SimpleNamespace

import numpy as np
import pytest

from maskgrpo_plugin.trainer.image_log import TABLE, TAG, log_contact_sheet

wandb = pytest.importorskip("wandb")


@pytest.fixture
def images():
    """Three images of one grey each, with prompts and scores."""
    return [(n, f"a drawing of {n}", n / 2, np.full((8, 8, 3), 40 * n, np.uint8)) for n in range(3)]


def logged(images, folder, table_rows):
    calls = []
    backend = SimpleNamespace(log=lambda data, step: calls.append((data, step)))
    tracking = SimpleNamespace(logger={"wandb": backend})
    assert log_contact_sheet(images, tracking, folder, 7, table_rows) == folder / "step_7.png"
    ((data, step),) = calls
    assert step == 7 and isinstance(data[TAG], wandb.Image)
    return data


def test_weights_and_biases_gets_a_table_of_as_many_images_as_are_asked_for(images, tmp_path):
    table = logged(images, tmp_path, 2)[TABLE]
    assert table.columns == ["step", "input", "output", "score"]
    assert [(row[0], row[1], row[3]) for row in table.data] == [(7, "a drawing of 0", 0.0), (7, "a drawing of 1", 0.5)]
    assert np.asarray(table.data[1][2].image).tolist() == images[1][3].tolist()


def test_there_is_no_table_where_none_is_asked_for(images, tmp_path):
    assert set(logged(images, tmp_path, 0)) == {TAG}
