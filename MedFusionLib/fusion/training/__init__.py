"""What trains the fusion methods."""
