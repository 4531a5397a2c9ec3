"""Names of the numbers that sites send along with an update, for strategies and weightings that need them."""

# Measurements that a site makes only where they are needed (on its validation split, unless a split is named).
RECEIVED_LOSS, UPDATE_LOSS = "received.loss", "update.loss"
"""Loss of the weights as received, and of the site's weights after training, each with its personal part."""

START_LOSS = "start.loss"
"""Loss of the weights as received on the whole training split."""

WITHOUT_ERROR = "without.error"
"""Error rate of the weights received with the site's own last update taken out."""

EFFECTIVE_STEPS = "train.effective_steps"
"""Local steps of the round, each weighted by how much of its gradient the momentum carried into the update."""

CANDIDATES = ("candidate-a", "candidate-b")
"""Two other weights that the server sends along; `candidate-a.loss`, `candidate-b.loss`."""

CANDIDATE_LOSSES = tuple(f"{name}.loss" for name in CANDIDATES)

LIMITS = {
    START_LOSS: (0.0, 1e9),
    EFFECTIVE_STEPS: (1.0, 1e9),
    WITHOUT_ERROR: (0.0, 1.0),
    # Squares of the largest errors in float32; sums of thousands of them stay finite.
    **dict.fromkeys((RECEIVED_LOSS, UPDATE_LOSS, *CANDIDATE_LOSSES), (0.0, 1e80)),
}
"""Least and largest value that a strategy or a weighting accepts of a measurement."""

CLASS_COUNTS = "class counts"
"""Training examples per class, sent in the handshake where the site's settings allow it."""
