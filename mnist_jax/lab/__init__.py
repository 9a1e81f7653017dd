"""What is measured: trials, statistics, speed, and the tables made of them."""
