"""What a person touches: command line, demo, in-process federation, reports."""
