"""What the server does for privacy: it adds sums that it cannot take apart, and noise on the mean."""
