"""What `import consilium` offers: studies, simulations and finished models (docs/researcher/python.md)."""

import logging
import os

# Before anything of flwr is imported, which reads them once: nothing is sent anywhere.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
# A program that asks for no log gets none: what ends a run is raised.
logging.getLogger("consilium").addHandler(logging.NullHandler())
