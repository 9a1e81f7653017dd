"""The command `mnist-jax reproduce`."""

from mnist_jax.cli import script

if __name__ == "__main__":
    script("reproduce")
