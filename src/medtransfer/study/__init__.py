"""Commands that run many stages or read a whole study."""
