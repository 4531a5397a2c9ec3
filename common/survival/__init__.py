"""Times until an event, some of them censored: how a label is written, who is ranked right, and what curves say."""
