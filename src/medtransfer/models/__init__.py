"""The models: VGG16 with its weights, and the trees."""
