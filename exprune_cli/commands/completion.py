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
    bash:  exprune completion bash > ~/.local/share/bash-completion/completions/exprune
    zsh:   exprune completion zsh > "${fpath[1]}/_exprune"
    fish:  exprune completion fish > ~/.config/fish/completions/exprune.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None  # the choices are click's own
    from exprune_cli.render import write_line

    write_line(kind(context.find_root().command, {}, "exprune", "_EXPRUNE_COMPLETE").source())
