"""Many trainings: trials and their files, many at once, and how they compare."""
