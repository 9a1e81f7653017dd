"""The command `mnist-jax time-to-target`."""

from mnist_jax.cli import script

if __name__ == "__main__":
    script("time-to-target")
