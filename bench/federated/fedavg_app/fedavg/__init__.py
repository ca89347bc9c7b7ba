"""FedAvg with Flower's own strategy: the rival of bench/federated/overhead.py."""
