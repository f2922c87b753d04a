"""Figures and tables, made only from files."""
