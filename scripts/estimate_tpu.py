"""The command `mnist-jax estimate-tpu`."""

from mnist_jax.cli import script

if __name__ == "__main__":
    script("estimate-tpu")
