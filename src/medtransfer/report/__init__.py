"""Figures and tables, from files alone."""
