"""Runs and comparisons in a folder: listed, shown, and laid side by side, whatever state they are in."""
