"""Codes of missing values, words for missing and truth values mean in a graph what they mean to the reader."""

from pathlib import Path

import numpy as np
import pytest
import torch
from table_forms import text

from consilium.client.data.input_rows import read_rows
from consilium.client.data.preparation import Preparation
from consilium.common.study.task import CategoryColumn, NumberColumn, TableTask

onnx = pytest.importorskip("onnx", reason="needs the extra 'export'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'export'")

TASK = TableTask.model_validate(
    {
        "classes": ("0", "1"),
        "label": "y",
        "columns": {
            "age": NumberColumn(),
            "sex": CategoryColumn(values=("F", "M")),
            "flag": CategoryColumn(values=("0", "1")),
        },
        "missing": "impute",
        "missing_values": {"age": [-9, 999], "sex": [9, "unknown"]},
    }
)
CELLS = [
    ("61.5", "F", "1"),
    ("-9", "M", "TRUE"),
    ("999", "9", "false"),
    ("-9.0", "9.0", "True"),
    ("62", "unknown", "N/A"),
    ("63", "none", "0"),
    ("64", "-", "NULL"),
]


def test_graph_reads_codes_and_words_as_the_reader_does(tmp_path: Path) -> None:
    """The same rows by the reader of files and by the graph: equal but for float32's rounding."""
    from consilium.serving.export.front import front_of
    from consilium.serving.export.graph import Graph

    (tmp_path / "a.csv").write_text(text(CELLS, head=("age", "sex", "flag")))
    read = read_rows(tmp_path / "a.csv", TASK, labelled=False, keep=(), group=None)
    assert len(CELLS) == len(read) and bool(torch.isnan(read.x).any())
    preparation = Preparation(fill=torch.tensor([50.0, 1.0, 0.0], dtype=torch.float64))
    graph = Graph()
    front = front_of(graph, TASK, preparation)
    output = onnx.helper.make_tensor_value_info(front.x, onnx.TensorProto.FLOAT, None)
    session = onnxruntime.InferenceSession(graph.model(front.inputs, [output], {}).SerializeToString())
    ages, sexes, flags = zip(*CELLS, strict=True)
    given = {
        "age": np.array([float(age) for age in ages]),
        "sex": np.array(sexes, dtype=object),
        "flag": np.array(flags, dtype=object),
    }
    (found,) = session.run(None, given)
    np.testing.assert_array_equal(preparation.applied(read.x).to(torch.float32).numpy(), found)
