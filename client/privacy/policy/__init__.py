"""The hospital's policy as its site applies it: rules, what leaves, approvals of runs."""
