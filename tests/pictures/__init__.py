"""The pictures of docs/ that show recorded data."""
