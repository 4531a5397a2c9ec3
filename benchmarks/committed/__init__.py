"""What the committed results are made of: the sites, the study, and the options of each comparison."""
