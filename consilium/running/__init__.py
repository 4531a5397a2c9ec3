"""Submit a study, follow it, or run it in this process."""
