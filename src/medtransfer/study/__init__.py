"""What runs many stages or reads a whole study."""
