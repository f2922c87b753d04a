"""Statistics: intervals, comparisons, claims, calibration and leakage."""
