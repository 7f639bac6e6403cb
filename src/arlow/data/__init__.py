"""Training data: what is read, drawn or made, and in which order."""
