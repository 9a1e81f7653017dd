"""The command `mnist-jax export`."""

from mnist_jax.cli import script

if __name__ == "__main__":
    script("export")
