"""Running a server: its home, its authority, its pages for monitoring."""
