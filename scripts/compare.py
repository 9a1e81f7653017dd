"""The command `mnist-jax compare`."""

from mnist_jax.cli import script

if __name__ == "__main__":
    script("compare")
