"""The settings of a study and of a site, and the rules on which of them go together."""
