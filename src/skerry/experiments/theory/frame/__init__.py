"""What all theorems share: verdicts, fitted rates, simulations, tables, pictures."""
