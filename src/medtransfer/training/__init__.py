"""One fit: its batches, its loop, the features and snapshots that it keeps, and the device that it runs on."""
