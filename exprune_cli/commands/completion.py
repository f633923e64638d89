"""``exprune completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes commands, options and files in a shell.

    \b
    bash:  eval "$(exprune completion bash)"         in ~/.bashrc
    zsh:   eval "$(exprune completion zsh)"          in ~/.zshrc
    fish:  exprune completion fish | source          in ~/.config/fish/config.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None  # the choices are click's own
    from exprune_cli.render import write_line

    write_line(kind(context.find_root().command, {}, "exprune", "_EXPRUNE_COMPLETE").source())
