"""One fit: its batches, loop, feature cache, checkpoints and device."""
