"""What a hospital promises its patients: the budget, its ledger, sums in place of updates, and a policy."""
