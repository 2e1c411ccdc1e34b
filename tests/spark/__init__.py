"""The lake on a local Spark."""
