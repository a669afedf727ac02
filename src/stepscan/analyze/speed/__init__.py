"""How fast ops, layers and models are: beside each other, peers and the machine's limits."""
