"""Classify images with a trained network: on the command line, in MLflow and on a web page."""
