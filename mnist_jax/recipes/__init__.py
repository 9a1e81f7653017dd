"""The settings of a run, the named recipes, and the fits of configs."""
