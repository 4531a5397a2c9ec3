"""The two processes of a site: one that talks, one that computes, and the memory that they share."""
