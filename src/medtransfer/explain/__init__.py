"""What a network sees and which of its layers matter: activations, Grad-CAM, rewinding, similarity and probes."""
