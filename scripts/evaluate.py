"""The command `mnist-jax evaluate`."""

from mnist_jax.cli import script

if __name__ == "__main__":
    script("evaluate")
