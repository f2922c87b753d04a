"""What every other folder builds on: parameters, files, messages, DVC's records and the formats of a fit."""
