"""Running a site: its folder, the doctor, its pages for monitoring."""
