"""A model after its study: asked about new patients, measured, calibrated, offered to other programs."""
