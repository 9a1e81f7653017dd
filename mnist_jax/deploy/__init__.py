"""Uses of a trained network: reading pictures, and exports to other formats."""
