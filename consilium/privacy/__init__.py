"""Pages and commands about privacy: what can be seen, what was spent, and whether records were changed."""
