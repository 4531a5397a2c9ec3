"""How a coordinator's model prepares inputs: by the scale of all sites, with categories left at 0 and 1."""

import pytest

from consilium.common.model import Preprocessing
from consilium.common.study.scale import Scale
from consilium.common.study.task import CategoryColumn, ImageTask, NumberColumn, TableTask

MIXED = TableTask(
    classes=("no", "yes"),
    label="ill",
    columns={"age": NumberColumn(), "pain": CategoryColumn(values=("a", "b", "c")), "pulse": NumberColumn()},
)
SCALE = Scale(mean=(50.0, 70.0), std=(10.0, 12.0))


def test_scale_of_number_columns_stands_where_their_features_do() -> None:
    """A category of three values is two features between the two numbers, and stays as it is."""
    found = Preprocessing.of_scale(MIXED, SCALE)
    assert found == Preprocessing(mean=(50.0, 0.0, 0.0, 70.0), std=(10.0, 1.0, 1.0, 12.0))


def test_missing_numbers_become_the_mean_of_all_sites_and_missing_categories_stay_unknown() -> None:
    """Only a study that fills missing cells says with what."""
    impute = MIXED.model_copy(update={"missing": "impute"})
    assert (50.0, None, None, 70.0) == Preprocessing.of_scale(impute, SCALE).fill


@pytest.mark.parametrize(
    ("task", "scale"), [(MIXED, SCALE), (ImageTask(classes=("a", "b"), scale="federation"), Scale(mean=(1,), std=(2,)))]
)
def test_scale_comes_back_from_what_was_written(task: TableTask | ImageTask, scale: Scale) -> None:
    """Law: `of_scale(task, scale).scale_of(task)` is `scale`; `consilium adapt` takes it from the model's folder."""
    assert scale == Preprocessing.of_scale(task, scale).scale_of(task)


def test_unknown_scale_is_said_where_inputs_need_one() -> None:
    """Pictures with the study's own mean and std need none; number columns do."""
    assert not Preprocessing.of_scale(MIXED, None).known
    assert Preprocessing.of_scale(ImageTask(classes=("a", "b")), None).known
