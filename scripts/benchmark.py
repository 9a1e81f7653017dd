"""The command `mnist-jax benchmark`."""

from mnist_jax.cli import script

if __name__ == "__main__":
    script("benchmark")
