"""One fit: its batches, its loop and the device that it runs on."""
