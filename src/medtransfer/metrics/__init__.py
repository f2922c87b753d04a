"""The metrics that a fit logs and that every table shows."""
