"""The data sets: what they are, how they get here, and whether they are whole."""
