"""The console of a command that trains."""

import os

from rich.console import Console


class LastingConsole(Console):
    """A console that says nothing more once the reader of its pipe has left, so that a training goes on."""

    def on_broken_pipe(self) -> None:
        """Is called by rich in place of the error."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
