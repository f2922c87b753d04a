"""The decision tree and the random forest."""
