"""The command `mnist-jax train`."""

from mnist_jax.cli import script

if __name__ == "__main__":
    script("train")
