"""A network as a short text, such as `16-pool-s24p-=2-pool-32`, read into blocks."""

import re
from typing import NamedTuple

from mnist_jax.errors import InputError


class Block(NamedTuple):
    """A convolution, with batch norm and ReLU after it.

    Attributes:
      channels: of its output.
      size: height and width of its kernel.
      padded: whether its output is as large as its input.
      separable: whether it is a kernel for each channel, then a 1x1 convolution.
      pool: whether a 2x2 max pool follows.
      again: the number of an earlier block, counted from 1, whose kernels it uses; 0 for kernels of its own.
      crop: how many pixels to leave out on each side of its input.
      fixed: whether its kernel is that of `directional_derivatives` and not trained. Weight decay, if any, shrinks it,
        which batch norm undoes.
    """

    channels: int
    size: int = 3
    padded: bool = False
    separable: bool = False
    pool: bool = False
    again: int = 0
    crop: int = 0
    fixed: bool = False


_WORD = re.compile(r"(?P<separable>s?)(?P<channels>[1-9]\d{0,3})(?:k(?P<size>[1357]))?(?P<padded>p?)")


def parse_layout(layout: str) -> tuple[Block, ...]:
    """Reads a layout into its blocks.

    A number is a valid 3x3 convolution to that many channels, with batch norm and ReLU after it. `16k5` is 5x5, `16p`
    is padded to the size of its input, `s16` is separable: a kernel for each channel, then a 1x1 convolution (Chollet,
    arXiv:1610.02357). `=2` uses the kernels of the second convolution again, with a batch norm of its own. `pool` is a
    2x2 max pool. `crop2`, as the first word, leaves out two pixels on each side of the images. `16f`, as the first
    convolution and of an even number, has the kernels of `directional_derivatives`, which are not trained.

    Raises InputError for a word that is none of these, or for kernels used again on another number of channels.
    """
    blocks: list[Block] = []
    words = layout.split("-")
    crop = int(words.pop(0)[4:]) if len(words) > 1 and re.fullmatch(r"crop[1-9]", words[0]) else 0
    for word in words:
        inputs = [1, *(block.channels for block in blocks)][: len(blocks)]  # Of each block.
        again = re.fullmatch(r"=(\d{1,2})", word)
        if word == "pool" and blocks and not blocks[-1].pool:
            blocks[-1] = blocks[-1]._replace(pool=True)
        elif again and blocks and inputs[int(again[1]) - 1 : int(again[1])] == [blocks[-1].channels]:
            used = blocks[int(again[1]) - 1]
            blocks.append(used._replace(pool=False, again=used.again or int(again[1]), crop=0))
        elif found := _WORD.fullmatch(word):
            size = int(found["size"] or 3)
            block = Block(int(found["channels"]), size, bool(found["padded"]), bool(found["separable"]))
            blocks.append(block if blocks else block._replace(crop=crop))
        elif not blocks and (fixed := re.fullmatch(r"([1-9]\d{0,2}[02468]|[2468])f", word)):
            blocks.append(Block(int(fixed[1]), crop=crop, fixed=True))
        else:
            raise InputError(f"layout {layout!r} cannot be read at {word!r}; write it as in 16-pool-s24p-=2-pool-32")
    return tuple(blocks)
