"""Parses the layout of a network, such as `16-pool-s24p-=2-pool-32`, into blocks."""

import re
from typing import NamedTuple

from mnist_jax.errors import InputError


class Block(NamedTuple):
    """A convolution with batch norm and ReLU.

    Attributes:
      channels: number of output channels.
      size: height and width of the kernel.
      padded: whether the output is as large as the input.
      separable: whether it is a depthwise convolution followed by a 1x1 convolution.
      pool: whether a 2x2 max pool follows.
      again: number of an earlier block, counted from 1, whose kernels are used again; 0 for own kernels.
      crop: pixels cut off each side of the input.
      fixed: whether the kernel is `directional_derivatives` and not trained. Weight decay shrinks it, which batch norm
        undoes.
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
    """Parses a layout: words joined by `-`, one for each convolution or pool.

    - `16`: a 3x3 convolution to 16 channels without padding, then batch norm and ReLU.
    - `16k5`: the same with a 5x5 kernel (1, 3, 5 or 7).
    - `16p`: padded to the size of its input.
    - `s16`: separable, a depthwise and a 1x1 convolution (Chollet, arXiv:1610.02357). `s16k5p` combines all three.
    - `=2`: the kernels of the second convolution again, with another batch norm.
    - `pool`: a 2x2 max pool.
    - `crop2`, first word only: cuts two pixels off each side of the images.
    - `16f`, first convolution only, an even number: the kernels of `directional_derivatives`, not trained.

    Args:
      layout: the text, such as "16-pool-s24p-=2-pool-32".

    Returns:
      The blocks. A network adds global average pooling and a 1x1 convolution to the logits.

    Raises:
      InputError: a word is none of these, or kernels are used again on another number of channels.

    Example:
      >>> [(block.channels, block.pool) for block in layouts.parse_layout("8-pool-s16p")]
      [(8, True), (16, False)]
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
            number = int(again[1])
            used = blocks[number - 1]
            blocks.append(used._replace(pool=False, again=used.again or number, crop=0))
        elif match := _WORD.fullmatch(word):
            size = int(match["size"] or 3)
            block = Block(int(match["channels"]), size, bool(match["padded"]), bool(match["separable"]))
            blocks.append(block if blocks else block._replace(crop=crop))
        elif not blocks and (fixed := re.fullmatch(r"([1-9]\d{0,2}[02468]|[2468])f", word)):
            blocks.append(Block(int(fixed[1]), crop=crop, fixed=True))
        else:
            raise InputError(f"layout {layout!r} cannot be read at {word!r}; write it as in 16-pool-s24p-=2-pool-32")
    return tuple(blocks)
