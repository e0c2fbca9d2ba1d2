"""What a stack on a Docker engine is made of."""
