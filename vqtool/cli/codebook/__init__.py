"""`vqtool codebook`: measure, rebuild and prune codebooks, and bring token grids and priors along.

A command is a file here with a function of its name, and its place in COMMANDS.
"""

import typer

from vqtool.cli.codebook.apply_map import apply_map
from vqtool.cli.codebook.finetune import finetune
from vqtool.cli.codebook.prune import prune
from vqtool.cli.codebook.refit import refit
from vqtool.cli.codebook.remap import remap
from vqtool.cli.codebook.transplant import transplant
from vqtool.cli.codebook.usage import usage
from vqtool.cli.help import Command

COMMANDS = (usage, refit, finetune, remap, prune, apply_map, transplant)

app = typer.Typer(help="Measure, rebuild and prune codebooks; convert token grids and priors.", no_args_is_help=True)
for _command in COMMANDS:
    app.command(cls=Command)(_command)
