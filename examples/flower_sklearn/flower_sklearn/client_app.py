"""What each site does: fit and score on its own data."""

import warnings

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from flower_sklearn.task import arrays_of, load_data, make_model, set_arrays

app = ClientApp()


def _model(message: Message, context: Context) -> LogisticRegression:
    arrays = message.content["arrays"].to_numpy_ndarrays()
    return set_arrays(make_model(float(context.run_config["penalty"])), arrays)


def _number(context: Context) -> int:
    return int(context.node_config.get("partition-id", context.node_id % 2**31))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Go on from the coefficients that came for a few iterations."""
    model, (x, y) = _model(message, context), load_data(_number(context))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # few iterations are the point
        model.fit(x, y)
    metrics = MetricRecord({"train_loss": float(log_loss(y, model.predict_proba(x))), "num-examples": len(y)})
    return Message(RecordDict({"arrays": ArrayRecord(arrays_of(model)), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the coefficients that came."""
    model, (x, y) = _model(message, context), load_data(_number(context) + 1_000)
    metrics = MetricRecord({"eval_acc": float(model.score(x, y)), "num-examples": len(y)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
