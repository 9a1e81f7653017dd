"""The command `mnist-jax train`."""

import sys

from mnist_jax.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
