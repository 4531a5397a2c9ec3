"""A model after its study: written into a folder by the site that serves it, loaded and asked wherever it is used."""

from consilium.client.served.load import Answers, ServedModel, load_model

__all__ = ["Answers", "ServedModel", "load_model"]
