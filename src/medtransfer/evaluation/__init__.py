"""Scores from predictions.csv alone: any model that writes one is scored by the same code."""
