"""Torch modules of the fusion methods."""
