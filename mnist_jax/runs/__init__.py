"""Runs on disk: directory, checkpoints, weights."""
