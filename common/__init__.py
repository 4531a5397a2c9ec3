"""What server and site must agree on; knows neither side, nor flwr, nor torch."""

__version__ = "0.1.0"
