"""Every setting of a run, the named recipes, and the fits of the values made of them."""
