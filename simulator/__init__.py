"""What happens if: one strategy in, one timeline out."""
