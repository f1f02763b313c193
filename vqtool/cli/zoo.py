"""`vqtool zoo`: the published models that have short names."""

from vqtool.cli.main import command
from vqtool.cli.options import JsonOutput


@command
def zoo(json: JsonOutput = False) -> None:
    """List published models: licences, sizes, the scores that their makers state, and what to type.

    zoo:NAME stands for a model in `vqtool import` and wherever a prior is named. It is downloaded from the Hugging Face
    hub when it is first used. hub:OWNER/NAME/FILE@REVISION names any other file there.

    Examples:

        vqtool zoo

        vqtool zoo --json
    """
    from json import dumps

    from vqtool.interop.zoo import rows

    table = rows()
    if json:
        print(dumps(table, indent=2))
        return
    for row in table:
        print(f"{row['name']}: {row['what']}")
        print(f"  {row['parameters']:,.0f} M weights, {row['licence']}; {row['score']} ({row['protocol']})")
        print(f"  {row['command']}")
