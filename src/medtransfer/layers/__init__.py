"""Which layers matter: probes, rewinding, similarity, Grad-CAM and activations."""
