"""VGG16 and its weights."""
