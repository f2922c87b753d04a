"""What a fit tells MLflow."""
