"""Simulated studies of users by the hundred thousand, of whom a small cohort trains in each round."""
