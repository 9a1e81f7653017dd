"""The command `mnist-jax predict`."""

from mnist_jax.cli import script

if __name__ == "__main__":
    script("predict")
