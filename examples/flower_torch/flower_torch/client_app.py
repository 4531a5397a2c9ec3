"""What each site does: train and evaluate on its own data."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flower_torch.task import evaluate as evaluate_model
from flower_torch.task import load_data, make_model
from flower_torch.task import train as train_model

app = ClientApp()


def _model(message: Message) -> torch.nn.Module:
    model = make_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return model


def _number(context: Context) -> int:
    return int(context.node_config.get("partition-id", context.node_id % 2**31))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model that came; count the rounds in this site's own state."""
    model, (training, _) = _model(message), load_data(_number(context))
    config = context.run_config
    loss = train_model(
        model, training, epochs=int(config["local-epochs"]), learning_rate=float(message.content["config"]["lr"])
    )
    rounds = int(context.state["counter"]["rounds"]) if "counter" in context.state else 0
    context.state["counter"] = MetricRecord({"rounds": rounds + 1})
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(training.dataset), "rounds_here": rounds + 1})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the model that came."""
    loss, accuracy, count = evaluate_model(_model(message), load_data(_number(context))[1])
    metrics = MetricRecord({"eval_loss": loss, "eval_acc": accuracy, "num-examples": count})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
