"""What a network sees: activations of its layers."""
