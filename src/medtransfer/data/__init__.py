"""Data sets: the catalogue, importing, splitting and preparing."""
