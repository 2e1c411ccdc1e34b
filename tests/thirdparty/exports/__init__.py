"""What others read of our exports."""
