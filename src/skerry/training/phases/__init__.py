"""The phases of a round, the same for every algorithm and runtime: local steps, exchange, and evaluation."""
