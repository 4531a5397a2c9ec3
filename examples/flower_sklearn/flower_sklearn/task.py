"""The model and its data: what both sides of the app share."""

import numpy as np
from sklearn.linear_model import LogisticRegression

NUM_FEATURES, NUM_EXAMPLES = 8, 200


def make_model(penalty: float) -> LogisticRegression:
    """Return a model that starts from the coefficients it is given; all zero at first."""
    model = LogisticRegression(C=1.0 / penalty, max_iter=3, warm_start=True)
    model.classes_ = np.array([0, 1])
    return set_arrays(model, [np.zeros((1, NUM_FEATURES)), np.zeros(1)])


def arrays_of(model: LogisticRegression) -> list[np.ndarray]:
    """Return coefficients and intercept."""
    return [model.coef_, model.intercept_]


def set_arrays(model: LogisticRegression, arrays: list[np.ndarray]) -> LogisticRegression:
    """Put coefficients and intercept into a model."""
    model.coef_, model.intercept_ = (array.copy() for array in arrays)
    return model


def load_data(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return examples and classes; each number has other examples of the same rule."""
    x = np.random.default_rng(number).standard_normal((NUM_EXAMPLES, NUM_FEATURES))
    return x, (x[:, 0] - x[:, 1] + 0.5 * x[:, 2] > 0).astype(int)
