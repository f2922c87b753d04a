"""Which layers matter (probes, rewinding, similarity), and where a network looked (Grad-CAM)."""
