"""Comparing files, DVC's records and MLflow, repairing and copying runs."""
