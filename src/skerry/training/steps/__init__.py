"""How a worker takes its local steps: with which optimizer, made anew in each round."""
