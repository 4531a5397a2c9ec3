"""Packages that an installation may lack: which extra of ours brings each, and the sentence that says so."""

from importlib.util import find_spec

from consilium.common.errors import ConfigError

EXTRAS = {
    "matplotlib": "report",
    "jinja2": "report",
    "markupsafe": "report",
    "pandas": "study",
    "pyarrow": "parquet",
    "openpyxl": "excel",
    "pydicom": "dicom",
    "nibabel": "nifti",
    "tensorboard": "tensorboard",
    "mlflow": "mlflow",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "fastapi": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "python_multipart": "serve",
    "timm": "timm",
    "monai": "monai",
    "transformers": "text",
    "tokenizers": "text",
    "pytest": "testing",
    "ray": "ray",
}
"""The extra of `pyproject.toml` that brings each package which our modules import and not every installation has."""

_WITH = {"study": ("study", "report")}
"""Extras that bring others."""


def check_extra(what: str, extra: str) -> None:
    """Check, before any work is done, that the packages of an extra are there.

    Args:
        what: what needs them, as a person calls it: a command, an option.

    Raises:
        ConfigError: the first that is missing, with the command that installs them.
    """
    for package, of in EXTRAS.items():
        if of in _WITH.get(extra, (extra,)) and find_spec(package) is None:
            raise missing(what, package, extra)


def missing(what: str, package: str, extra: str | None = None) -> ConfigError:
    """Return the sentence about a package of one of our extras that is not installed."""
    extra = extra or EXTRAS[package]
    return ConfigError(
        f"{what} needs {package}, which is not installed; install it with: pip install 'consilium[{extra}]'"
    )
