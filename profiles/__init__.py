"""What things are and what they cost: models, accelerators, clusters, operators, collectives, measured tables."""
