"""The command `mnist-jax search`."""

from mnist_jax.cli import script

if __name__ == "__main__":
    script("search")
