"""Average three sites' models, dictionaries {layer: value}, by their 1000, 500 and 200 examples (FedAvg).

Run: `python examples/weighted_mean.py`
"""

import numpy as np

import consilium as cs

SIZES = {"berlin": 1000, "lyon": 500, "porto": 200}
"""How many examples each site trained on."""
MODELS = {
    "berlin": {"conv": np.array(1.7), "head": np.array([1.0, 0.0])},
    "lyon": {"conv": np.array(3.4), "head": np.array([0.0, 1.0])},
    "porto": {"conv": np.array(8.5), "head": np.array([0.0, 0.0])},
}
"""What each site has after its training."""


def main() -> None:
    """Print the shares of the sites and the mean of their models."""
    shares = cs.weights(SIZES)
    mean = cs.weighted_mean(list(MODELS.values()), [shares[site] for site in MODELS])
    for site, share in shares.items():
        print(f"{site}: {SIZES[site]} examples, share {share:.4f}")
    for layer, value in mean.items():
        print(f"{layer}: {np.asarray(value, dtype=float).round(4).tolist()}")


if __name__ == "__main__":
    main()
