"""A trained network at work: pictures in, other formats out."""
