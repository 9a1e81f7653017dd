"""Measurements: trials, speed, estimates, and the tables and figures made from them."""
