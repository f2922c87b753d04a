"""One fit: its batches, its loop, the features and checkpoints that it keeps, and the device that it runs on."""
