"""Three sites, one model, as a Flower app (docs/federated.md)."""
